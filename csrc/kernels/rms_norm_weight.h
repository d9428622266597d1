// The gradient of RMSNorm's weight: sums over rows in two passes, always in the same order.
#ifndef MEMO_KERNELS_RMS_NORM_WEIGHT_H_
#define MEMO_KERNELS_RMS_NORM_WEIGHT_H_

#include "kernels/packs.h"

namespace memo {

// First pass: every chunk of `chunk_rows` rows gives one row of fp32 sums; the last may be shorter.
template <typename T>
struct RmsNormWeightSums {
  const T* dy;
  const T* x;
  const float* scales;  // 1 / rms(x) of each row
  float* sums;
  size_t rows;
  size_t row_packs;
  size_t chunk_rows;
};

template <typename T>
MEMO_HOST_DEVICE size_t NumChunks(const RmsNormWeightSums<T>& args) {
  return (args.rows + args.chunk_rows - 1) / args.chunk_rows;
}

template <typename T>
MEMO_HOST_DEVICE size_t NumItems(const RmsNormWeightSums<T>& args) {
  return NumChunks(args) * args.row_packs;
}

template <typename T>
MEMO_HOST_DEVICE void RunItem(const RmsNormWeightSums<T>& args, size_t item) {
  using P = Pack<T>;
  using Sums = Pack<float>;
  const size_t column = item % args.row_packs;
  const size_t first = item / args.row_packs * args.chunk_rows;
  const size_t end = first + args.chunk_rows < args.rows ? first + args.chunk_rows : args.rows;
  Sums sums[P::kElements / Sums::kElements] = {};
  MEMO_UNROLL_4
  for (size_t row = first; row < end; ++row) {
    const P dy = LoadPack<P>(args.dy, row * args.row_packs + column);
    const P x = LoadPack<P>(args.x, row * args.row_packs + column);
    const float scale = args.scales[row];
    for (size_t e = 0; e < P::kElements; ++e) {
      const float d = ToFloat(dy.values[e]) * (ToFloat(x.values[e]) * scale);
      sums[e / Sums::kElements].values[e % Sums::kElements] += d;
    }
  }
  constexpr size_t kPacks = P::kElements / Sums::kElements;
  for (size_t i = 0; i < kPacks; ++i) StorePack(args.sums, item * kPacks + i, sums[i]);
}

// Second pass: the chunks' sums are added up and rounded, four columns an item.
template <typename T>
struct RmsNormWeightGradient {
  const float* sums;
  T* d_weight;
  size_t chunks;
  size_t columns;
};

template <typename T>
MEMO_HOST_DEVICE size_t NumItems(const RmsNormWeightGradient<T>& args) {
  return args.columns / Pack<float>::kElements;
}

template <typename T>
MEMO_HOST_DEVICE void RunItem(const RmsNormWeightGradient<T>& args, size_t item) {
  using Sums = Pack<float>;
  Sums total = {};
  MEMO_UNROLL_4
  for (size_t chunk = 0; chunk < args.chunks; ++chunk) {
    const Sums sums = LoadPack<Sums>(args.sums, chunk * NumItems(args) + item);
    for (size_t e = 0; e < Sums::kElements; ++e) total.values[e] += sums.values[e];
  }
  Pack<T, Sums::kElements> rounded;
  for (size_t e = 0; e < Sums::kElements; ++e) rounded.values[e] = FromFloat<T>(total.values[e]);
  StorePack(args.d_weight, item, rounded);
}

}  // namespace memo

#endif  // MEMO_KERNELS_RMS_NORM_WEIGHT_H_
