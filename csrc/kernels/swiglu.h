// SwiGLU, y = silu(gate) * up, in one pass forward and one backward.
// Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
#ifndef MEMO_KERNELS_SWIGLU_H_
#define MEMO_KERNELS_SWIGLU_H_

#include <cmath>

#include "kernels/elementwise.h"

namespace memo {

// gate, up -> y
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

}  // namespace memo

#endif  // MEMO_KERNELS_SWIGLU_H_
