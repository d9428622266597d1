// SwiGLU, y = silu(gate) * up, in one pass forward and one backward.
// Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
#ifndef MEMO_KERNELS_SWIGLU_H_
#define MEMO_KERNELS_SWIGLU_H_

#include <cmath>

#include "kernels/packs.h"

namespace memo {

// Arrays of `elements` numbers each, 16-byte aligned.
template <typename T>
struct Swiglu {
  const T* gate;
  const T* up;
  T* y;
  size_t elements;
};

// Gradients of gate and up from y's.
template <typename T>
struct SwigluBackward {
  const T* dy;
  const T* gate;
  const T* up;
  T* d_gate;
  T* d_up;
  size_t elements;
};

// Items of work: one for every whole pack, then one for every number of the rest.
template <template <typename> class Args, typename T>
MEMO_HOST_DEVICE size_t NumItems(const Args<T>& args) {
  return args.elements / Pack<T>::kElements + args.elements % Pack<T>::kElements;
}

template <typename T>
MEMO_HOST_DEVICE T SwigluOf(T gate, T up) {
  const float g = ToFloat(gate);
  return FromFloat<T>(g / (1.0f + expf(-g)) * ToFloat(up));
}

template <typename T>
struct GatePair {
  T d_gate;
  T d_up;
};

template <typename T>
MEMO_HOST_DEVICE GatePair<T> SwigluGradient(T dy, T gate, T up) {
  const float g = ToFloat(gate);
  const float d = ToFloat(dy);
  const float s = 1.0f / (1.0f + expf(-g));
  const float slope = s * (1.0f + g * (1.0f - s));
  return GatePair<T>{FromFloat<T>(d * ToFloat(up) * slope), FromFloat<T>(d * g * s)};
}

template <typename T>
MEMO_HOST_DEVICE void RunItem(const Swiglu<T>& args, size_t item) {
  using P = Pack<T>;
  const size_t num_packs = args.elements / P::kElements;
  if (item >= num_packs) {
    const size_t i = num_packs * P::kElements + (item - num_packs);
    args.y[i] = SwigluOf(args.gate[i], args.up[i]);
    return;
  }
  const P gate = reinterpret_cast<const P*>(args.gate)[item];
  const P up = reinterpret_cast<const P*>(args.up)[item];
  P y;
  for (size_t i = 0; i < P::kElements; ++i) y.values[i] = SwigluOf(gate.values[i], up.values[i]);
  reinterpret_cast<P*>(args.y)[item] = y;
}

template <typename T>
MEMO_HOST_DEVICE void RunItem(const SwigluBackward<T>& args, size_t item) {
  using P = Pack<T>;
  const size_t num_packs = args.elements / P::kElements;
  if (item >= num_packs) {
    const size_t i = num_packs * P::kElements + (item - num_packs);
    const GatePair<T> pair = SwigluGradient(args.dy[i], args.gate[i], args.up[i]);
    args.d_gate[i] = pair.d_gate;
    args.d_up[i] = pair.d_up;
    return;
  }
  const P dy = reinterpret_cast<const P*>(args.dy)[item];
  const P gate = reinterpret_cast<const P*>(args.gate)[item];
  const P up = reinterpret_cast<const P*>(args.up)[item];
  P d_gate;
  P d_up;
  for (size_t i = 0; i < P::kElements; ++i) {
    const GatePair<T> pair = SwigluGradient(dy.values[i], gate.values[i], up.values[i]);
    d_gate.values[i] = pair.d_gate;
    d_up.values[i] = pair.d_up;
  }
  reinterpret_cast<P*>(args.d_gate)[item] = d_gate;
  reinterpret_cast<P*>(args.d_up)[item] = d_up;
}

}  // namespace memo

#endif  // MEMO_KERNELS_SWIGLU_H_
