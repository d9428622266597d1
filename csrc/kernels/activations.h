// Activations: what is computed of each number alone, in fp32, in one pass forward and one
// backward.
#ifndef MEMO_KERNELS_ACTIVATIONS_H_
#define MEMO_KERNELS_ACTIVATIONS_H_

#include <cmath>

#include "kernels/packs.h"

namespace memo {

// SwiGLU, y = silu(gate) * up: gate, up -> y.
// Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
struct Swiglu {
  static constexpr int kInputs = 2;
  static constexpr int kOutputs = 1;

  MEMO_HOST_DEVICE static void Compute(const float (&in)[kInputs], float (&out)[kOutputs]) {
    const float gate = in[0];
    out[0] = gate / (1.0f + expf(-gate)) * in[1];
  }
};

// dy, gate, up -> gradients of gate and up
struct SwigluBackward {
  static constexpr int kInputs = 3;
  static constexpr int kOutputs = 2;

  MEMO_HOST_DEVICE static void Compute(const float (&in)[kInputs], float (&out)[kOutputs]) {
    const float dy = in[0];
    const float gate = in[1];
    const float s = 1.0f / (1.0f + expf(-gate));
    out[0] = dy * in[2] * (s * (1.0f + gate * (1.0f - s)));
    out[1] = dy * gate * s;
  }
};

// GELU, y = x * cdf(x) of the normal distribution, or its approximation by a tanh.
// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415.

// The distribution and its slope at x, by the complementary error function: 1 + erf(x) would lose
// the digits of the lower tail.
struct NormalByErf {
  MEMO_HOST_DEVICE static float Share(float x) {
    constexpr float kSqrtHalf = 0.70710678f;
    return 0.5f * erfcf(-x * kSqrtHalf);
  }
  MEMO_HOST_DEVICE static float Slope(float x, float /*share*/) {
    constexpr float kInverseSqrtTwoPi = 0.39894228f;
    return kInverseSqrtTwoPi * expf(-0.5f * x * x);
  }
};

// The same by (1 + tanh(u)) / 2, computed as the logistic function of 2u for the same reason.
struct NormalByTanh {
  static constexpr float kTwoSqrtTwoOverPi = 1.59576912f;
  static constexpr float kCubic = 0.044715f;

  MEMO_HOST_DEVICE static float Share(float x) {
    return 1.0f / (1.0f + expf(-kTwoSqrtTwoOverPi * x * (1.0f + kCubic * x * x)));
  }
  MEMO_HOST_DEVICE static float Slope(float x, float share) {
    return share * Share(-x) * kTwoSqrtTwoOverPi * (1.0f + 3.0f * kCubic * x * x);
  }
};

// x -> y
template <typename Normal>
struct Gelu {
  static constexpr int kInputs = 1;
  static constexpr int kOutputs = 1;

  MEMO_HOST_DEVICE static void Compute(const float (&in)[kInputs], float (&out)[kOutputs]) {
    out[0] = in[0] * Normal::Share(in[0]);
  }
};

// dy, x -> gradient of x
template <typename Normal>
struct GeluBackward {
  static constexpr int kInputs = 2;
  static constexpr int kOutputs = 1;

  MEMO_HOST_DEVICE static void Compute(const float (&in)[kInputs], float (&out)[kOutputs]) {
    const float x = in[1];
    const float share = Normal::Share(x);
    out[0] = in[0] * (share + x * Normal::Slope(x, share));
  }
};

// An Op as above, which says what is computed; the rest is how numbers come and go.
//
// Arrays of `elements` numbers each, 16-byte aligned. Op has kInputs, kOutputs and
// Compute(const float (&in)[kInputs], float (&out)[kOutputs]).
template <typename Op, typename T>
struct Elementwise {
  const T* inputs[Op::kInputs];
  T* outputs[Op::kOutputs];
  size_t elements;

  // P: a whole pack, or a pack of one number for the rest.
  template <typename P>
  MEMO_HOST_DEVICE void ComputePack(size_t index) const {
    P in[Op::kInputs];
    P out[Op::kOutputs];
    for (int i = 0; i < Op::kInputs; ++i) in[i] = LoadPack<P>(inputs[i], index);
    for (size_t e = 0; e < P::kElements; ++e) {
      float numbers[Op::kInputs];
      float results[Op::kOutputs];
      for (int i = 0; i < Op::kInputs; ++i) numbers[i] = ToFloat(in[i].values[e]);
      Op::Compute(numbers, results);
      for (int i = 0; i < Op::kOutputs; ++i) out[i].values[e] = FromFloat<T>(results[i]);
    }
    for (int i = 0; i < Op::kOutputs; ++i) StorePack(outputs[i], index, out[i]);
  }
};

// Items of work: one for every whole pack, then one for every number of the rest.
template <typename Op, typename T>
MEMO_HOST_DEVICE size_t NumItems(const Elementwise<Op, T>& args) {
  return args.elements / Pack<T>::kElements + args.elements % Pack<T>::kElements;
}

template <typename Op, typename T>
MEMO_HOST_DEVICE void RunItem(const Elementwise<Op, T>& args, size_t item) {
  const size_t num_packs = args.elements / Pack<T>::kElements;
  if (item < num_packs) {
    args.template ComputePack<Pack<T>>(item);
  } else {
    args.template ComputePack<Pack<T, 1>>(num_packs * Pack<T>::kElements + (item - num_packs));
  }
}

}  // namespace memo

#endif  // MEMO_KERNELS_ACTIVATIONS_H_
