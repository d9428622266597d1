// The CUDA allocators of the process as Python sees them: part of memo_train._cuda.
#ifndef MEMO_BINDINGS_CUDA_ALLOCATOR_H_
#define MEMO_BINDINGS_CUDA_ALLOCATOR_H_

#include <pybind11/pybind11.h>

// Adds them to the module. Devices and streams are integers; no logic here.
void BindCudaAllocators(pybind11::module_& m);

#endif  // MEMO_BINDINGS_CUDA_ALLOCATOR_H_
