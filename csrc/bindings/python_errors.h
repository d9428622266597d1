// C++ errors as the exceptions of memo_train.device.errors, for modules that need CUDA.
#ifndef MEMO_BINDINGS_PYTHON_ERRORS_H_
#define MEMO_BINDINGS_PYTHON_ERRORS_H_

#include <pybind11/pybind11.h>

#include <exception>

#include "base/check.h"
#include "cuda/cuda_calls.h"

namespace memo {

inline void RaisePython(const char* name, const std::exception& error) {
  const pybind11::module_ errors = pybind11::module_::import("memo_train.device.errors");
  PyErr_SetString(errors.attr(name).ptr(), error.what());
}

inline void TranslateErrors(std::exception_ptr pointer) {
  try {
    std::rethrow_exception(pointer);
  } catch (const InvalidArgument& error) {
    RaisePython("InvalidDeviceArgument", error);
  } catch (const DeviceMemoryExceeded& error) {
    RaisePython("DeviceMemoryExceeded", error);
  } catch (const HostMemoryExceeded& error) {
    RaisePython("HostMemoryExceeded", error);
  } catch (const ForkedProcess& error) {
    RaisePython("ForkedProcess", error);
  } catch (const CudaError& error) {
    RaisePython("CudaError", error);
  }
}

}  // namespace memo

#endif  // MEMO_BINDINGS_PYTHON_ERRORS_H_
