// GELU, y = x * cdf(x) of the normal distribution, and its approximation by a tanh.
// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415.
#ifndef MEMO_KERNELS_GELU_H_
#define MEMO_KERNELS_GELU_H_

#include <cmath>

#include "kernels/elementwise.h"

namespace memo {

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

}  // namespace memo

#endif  // MEMO_KERNELS_GELU_H_
