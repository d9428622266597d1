// Runs the element code: on a stream of the GPU, or on this thread as the GPU's reference.
#ifndef MEMO_KERNELS_RUN_H_
#define MEMO_KERNELS_RUN_H_

#include <cuda_runtime_api.h>

#include <optional>

#include "kernels/copy_rows.h"
#include "kernels/swiglu.h"

namespace memo {

// Starts the kernel on `stream` of the current device. Throws CudaError.
template <typename Args>
void RunOnDevice(const Args& args, cudaStream_t stream);

template <typename Args>
void RunOnHost(const Args& args) {
  const size_t num_items = NumItems(args);
  for (size_t item = 0; item < num_items; ++item) RunItem(args, item);
}

// On `stream`, or on this thread without one.
template <typename Args>
void Run(const Args& args, std::optional<cudaStream_t> stream) {
  if (stream) {
    RunOnDevice(args, *stream);
  } else {
    RunOnHost(args);
  }
}

}  // namespace memo

#endif  // MEMO_KERNELS_RUN_H_
