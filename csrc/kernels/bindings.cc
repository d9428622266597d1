// memo_train._kernels: the kernels as Python sees them. Addresses and streams are integers; without
// a stream the same element code runs on the calling thread. No logic here: memo_train/kernels.py
// says what arguments mean and checks them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "kernels/run.h"
#include "python_errors.h"

namespace py = pybind11;

namespace {

using Stream = std::optional<uintptr_t>;
using Released = py::call_guard<py::gil_scoped_release>;

template <typename T>
T* At(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

std::optional<cudaStream_t> Handle(Stream stream) {
  if (!stream) return std::nullopt;
  return reinterpret_cast<cudaStream_t>(*stream);
}

template <typename T>
void BindSwiglu(py::module_& m, const std::string& dtype) {
  m.def(("swiglu_" + dtype).c_str(),
        [](uintptr_t gate, uintptr_t up, uintptr_t y, size_t elements, Stream stream) {
          memo::Run(memo::Swiglu<T>{At<T>(gate), At<T>(up), At<T>(y), elements}, Handle(stream));
        },
        Released());
  m.def(("swiglu_backward_" + dtype).c_str(),
        [](std::array<uintptr_t, 5> data, size_t elements, Stream stream) {
          memo::Run(memo::SwigluBackward<T>{At<T>(data[0]), At<T>(data[1]), At<T>(data[2]),
                                            At<T>(data[3]), At<T>(data[4]), elements},
                    Handle(stream));
        },
        Released());
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "The CUDA kernels of memo_train, and their element code on the host.";
  m.attr("CUDA_VERSION") = MEMO_CUDA_VERSION;
  m.attr("ARCHS") = MEMO_CUDA_ARCHS;
  py::register_local_exception_translator(&memo::TranslateErrors);
  BindSwiglu<float>(m, "float32");
  BindSwiglu<__half>(m, "float16");
  BindSwiglu<__nv_bfloat16>(m, "bfloat16");
  using Pitches = std::array<size_t, 4>;
  m.def(
      "copy_rows",
      [](uintptr_t target, uintptr_t source, std::array<size_t, 3> shape, Pitches pitches,
         Stream stream) {
        using Packs = memo::Pack<float>;
        memo::Run(memo::CopyRows{At<Packs>(source), At<Packs>(target), shape[0], shape[1], shape[2],
                                 pitches[0], pitches[1], pitches[2], pitches[3]},
                  Handle(stream));
      },
      Released());
}
