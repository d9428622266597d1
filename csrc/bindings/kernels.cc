// memo_train._kernels: the kernels as Python sees them. Addresses and streams are integers; without
// a stream the same element code runs on the calling thread. No logic here: memo_train/kernels
// says what arguments mean and checks them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "base/check.h"
#include "bindings/python_types.h"
#include "kernels/activations.h"
#include "kernels/copy_rows.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/run.h"

namespace py = pybind11;

namespace {

using Stream = std::optional<uintptr_t>;
using Released = py::call_guard<py::gil_scoped_release>;
using Pitches = std::array<size_t, 3>;

template <typename T>
T* At(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

std::optional<cudaStream_t> Handle(Stream stream) {
  if (!stream) return std::nullopt;
  return reinterpret_cast<cudaStream_t>(*stream);
}

// Calls run(T{}) with the type that Python calls `dtype`.
template <typename Function>
void WithType(const std::string& dtype, const Function& run) {
  if (dtype == "float32") return run(float{});
  if (dtype == "float16") return run(__half{});
  MEMO_CHECK(dtype == "bfloat16") << dtype;
  run(__nv_bfloat16{});
}

template <typename Op>
void BindElementwise(py::module_& m, const char* name) {
  m.def(
      name,
      [](const std::string& dtype, std::array<uintptr_t, Op::kInputs> inputs,
         std::array<uintptr_t, Op::kOutputs> outputs, size_t elements, Stream stream) {
        WithType(dtype, [&](auto number) {
          using T = decltype(number);
          memo::Elementwise<Op, T> args = {};
          for (int i = 0; i < Op::kInputs; ++i) args.inputs[i] = At<T>(inputs[i]);
          for (int i = 0; i < Op::kOutputs; ++i) args.outputs[i] = At<T>(outputs[i]);
          args.elements = elements;
          memo::RunItems(args, Handle(stream));
        });
      },
      Released());
}

void CopyRows(uintptr_t target, uintptr_t source, std::array<size_t, 3> shape,
              std::array<size_t, 4> pitches, Stream stream) {
  using Packs = memo::Pack<float>;
  memo::RunItems(memo::CopyRows{At<Packs>(source), At<Packs>(target), shape[0], shape[1], shape[2],
                                pitches[0], pitches[1], pitches[2], pitches[3]},
                 Handle(stream));
}

void RmsNorm(const std::string& dtype, std::array<uintptr_t, 3> data, std::array<size_t, 2> shape,
             float epsilon, Stream stream) {
  WithType(dtype, [&](auto number) {
    using T = decltype(number);
    memo::RunRows(memo::RmsNorm<T>{At<T>(data[0]), At<T>(data[1]), At<T>(data[2]), shape[0],
                                   shape[1], epsilon},
                  Handle(stream));
  });
}

void RmsNormBackward(const std::string& dtype, std::array<uintptr_t, 5> data,
                     std::array<size_t, 2> shape, float epsilon, Stream stream) {
  WithType(dtype, [&](auto number) {
    using T = decltype(number);
    memo::RunRows(
        memo::RmsNormBackward<T>{At<T>(data[0]), At<T>(data[1]), At<T>(data[2]), At<T>(data[3]),
                                 At<float>(data[4]), shape[0], shape[1], epsilon},
        Handle(stream));
  });
}

void RmsNormWeightGradient(const std::string& dtype, std::array<uintptr_t, 5> data,
                           std::array<size_t, 2> shape, size_t band_rows, Stream stream) {
  WithType(dtype, [&](auto number) {
    using T = decltype(number);
    const memo::RmsNormWeightSums<T> sums = {At<T>(data[0]),     At<T>(data[1]), At<float>(data[2]),
                                             At<float>(data[3]), shape[0],       shape[1],
                                             band_rows};
    memo::RunItems(sums, Handle(stream));
    memo::RunItems(memo::RmsNormWeightGradient<T>{sums.sums, At<T>(data[4]), sums.NumBands(),
                                                  shape[1] * memo::Pack<T>::kElements},
                   Handle(stream));
  });
}

void Rope(const std::string& dtype, std::array<uintptr_t, 4> data, std::array<size_t, 4> shape,
          std::array<Pitches, 2> pitches, std::array<size_t, 2> table_pitches, bool is_backward,
          Stream stream) {
  WithType(dtype, [&](auto number) {
    using T = decltype(number);
    memo::Rope<T> args = {};
    args.x = At<T>(data[0]);
    args.cos = At<T>(data[1]);
    args.sin = At<T>(data[2]);
    args.y = At<T>(data[3]);
    args.batch = shape[0];
    args.heads = shape[1];
    args.tokens = shape[2];
    args.half_packs = shape[3];
    args.x_pitches = {pitches[0][0], pitches[0][1], pitches[0][2]};
    args.y_pitches = {pitches[1][0], pitches[1][1], pitches[1][2]};
    args.table_batch_pitch = table_pitches[0];
    args.table_token_pitch = table_pitches[1];
    args.is_backward = is_backward;
    memo::RunItems(args, Handle(stream));
  });
}

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "The CUDA kernels of memo_train, and their element code on the host.";
  m.attr("CUDA_VERSION") = MEMO_CUDA_VERSION;
  m.attr("ARCHS") = MEMO_CUDA_ARCHS;
  py::register_local_exception_translator(&memo::TranslateErrors);
  BindElementwise<memo::Swiglu>(m, "swiglu");
  BindElementwise<memo::SwigluBackward>(m, "swiglu_backward");
  BindElementwise<memo::Gelu<memo::NormalByErf>>(m, "gelu_erf");
  BindElementwise<memo::GeluBackward<memo::NormalByErf>>(m, "gelu_erf_backward");
  BindElementwise<memo::Gelu<memo::NormalByTanh>>(m, "gelu_tanh");
  BindElementwise<memo::GeluBackward<memo::NormalByTanh>>(m, "gelu_tanh_backward");
  m.def("copy_rows", &CopyRows, Released());
  m.def("rms_norm", &RmsNorm, Released());
  m.def("rms_norm_backward", &RmsNormBackward, Released());
  m.def("rms_norm_weight_gradient", &RmsNormWeightGradient, Released());
  m.def("rope", &Rope, Released());
}
