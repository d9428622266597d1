// Operations on each number alone: an Op says what is computed, in fp32; here numbers come and go.
#ifndef MEMO_KERNELS_ELEMENTWISE_H_
#define MEMO_KERNELS_ELEMENTWISE_H_

#include "kernels/packs.h"

namespace memo {

// Arrays of `elements` numbers each, 16-byte aligned. Op has kInputs, kOutputs and
// Compute(const float (&in)[kInputs], float (&out)[kOutputs]).
template <typename Op, typename T>
struct Elementwise {
  const T* inputs[Op::kInputs];
  T* outputs[Op::kOutputs];
  size_t elements;
};

// Items of work: one for every whole pack, then one for every number of the rest.
template <typename Op, typename T>
MEMO_HOST_DEVICE size_t NumItems(const Elementwise<Op, T>& args) {
  return args.elements / Pack<T>::kElements + args.elements % Pack<T>::kElements;
}

template <typename P, typename Op, typename T>
MEMO_HOST_DEVICE void ComputePack(const Elementwise<Op, T>& args, size_t index) {
  P in[Op::kInputs];
  P out[Op::kOutputs];
  for (int i = 0; i < Op::kInputs; ++i) in[i] = LoadPack<P>(args.inputs[i], index);
  for (size_t e = 0; e < P::kElements; ++e) {
    float numbers[Op::kInputs];
    float results[Op::kOutputs];
    for (int i = 0; i < Op::kInputs; ++i) numbers[i] = ToFloat(in[i].values[e]);
    Op::Compute(numbers, results);
    for (int i = 0; i < Op::kOutputs; ++i) out[i].values[e] = FromFloat<T>(results[i]);
  }
  for (int i = 0; i < Op::kOutputs; ++i) StorePack(args.outputs[i], index, out[i]);
}

template <typename Op, typename T>
MEMO_HOST_DEVICE void RunItem(const Elementwise<Op, T>& args, size_t item) {
  const size_t num_packs = args.elements / Pack<T>::kElements;
  if (item < num_packs) {
    ComputePack<Pack<T>>(args, item);
  } else {
    ComputePack<Pack<T, 1>>(args, num_packs * Pack<T>::kElements + (item - num_packs));
  }
}

}  // namespace memo

#endif  // MEMO_KERNELS_ELEMENTWISE_H_
