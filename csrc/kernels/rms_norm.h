// RMSNorm, y = x / rms(x) * weight over rows, forward and backward.
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467.
#ifndef MEMO_KERNELS_RMS_NORM_H_
#define MEMO_KERNELS_RMS_NORM_H_

#include <cmath>

#include "kernels/packs.h"
#include "kernels/run.h"

namespace memo {

// Arrays of `rows` times `row_packs` packs, 16-byte aligned; weight is one row.
template <typename T>
struct RmsNorm {
  static constexpr int kSums = 1;
  const T* x;
  const T* weight;
  T* y;
  size_t rows;
  size_t row_packs;
  float epsilon;
};

// dx from dy; scales, 1 / rms(x) of each row, are for the gradient of weight.
template <typename T>
struct RmsNormBackward {
  static constexpr int kSums = 2;
  const T* dy;
  const T* x;
  const T* weight;
  T* dx;
  float* scales;
  size_t rows;
  size_t row_packs;
  float epsilon;
};

// 1 / rms(x) of a row of `numbers`, rounded once: its error is one of all the row's numbers.
MEMO_HOST_DEVICE float RmsScale(float squares, size_t numbers, float epsilon) {
  const double mean = static_cast<double>(squares) / static_cast<double>(numbers);
  return static_cast<float>(1.0 / sqrt(mean + static_cast<double>(epsilon)));
}

template <typename T>
MEMO_HOST_DEVICE LaneSums<1> SumLane(const RmsNorm<T>& args, size_t row, unsigned lane) {
  using P = Pack<T>;
  float squares = 0.0f;
  for (size_t i = lane; i < args.row_packs; i += kLanes) {
    const P x = LoadPack<P>(args.x, row * args.row_packs + i);
    for (size_t e = 0; e < P::kElements; ++e) {
      const float number = ToFloat(x.values[e]);
      squares += number * number;
    }
  }
  return {{squares}};
}

template <typename T>
MEMO_HOST_DEVICE void FinishLane(const RmsNorm<T>& args, size_t row, unsigned lane,
                                 const LaneSums<1>& sums) {
  using P = Pack<T>;
  const float scale = RmsScale(sums.values[0], args.row_packs * P::kElements, args.epsilon);
  for (size_t i = lane; i < args.row_packs; i += kLanes) {
    P pack = LoadPack<P>(args.x, row * args.row_packs + i);
    const P weight = LoadPack<P>(args.weight, i);
    for (size_t e = 0; e < P::kElements; ++e) {
      const float y = ToFloat(pack.values[e]) * scale * ToFloat(weight.values[e]);
      pack.values[e] = FromFloat<T>(y);
    }
    StorePack(args.y, row * args.row_packs + i, pack);
  }
}

// With d = dy * weight and r = 1 / rms(x): dx = r * (d - x * r^2 * mean(d * x)).
template <typename T>
MEMO_HOST_DEVICE LaneSums<2> SumLane(const RmsNormBackward<T>& args, size_t row, unsigned lane) {
  using P = Pack<T>;
  LaneSums<2> sums = {{0.0f, 0.0f}};
  for (size_t i = lane; i < args.row_packs; i += kLanes) {
    const P dy = LoadPack<P>(args.dy, row * args.row_packs + i);
    const P x = LoadPack<P>(args.x, row * args.row_packs + i);
    const P weight = LoadPack<P>(args.weight, i);
    for (size_t e = 0; e < P::kElements; ++e) {
      const float number = ToFloat(x.values[e]);
      sums.values[0] += number * number;
      sums.values[1] += ToFloat(dy.values[e]) * ToFloat(weight.values[e]) * number;
    }
  }
  return sums;
}

template <typename T>
MEMO_HOST_DEVICE void FinishLane(const RmsNormBackward<T>& args, size_t row, unsigned lane,
                                 const LaneSums<2>& sums) {
  using P = Pack<T>;
  const float numbers = static_cast<float>(args.row_packs * P::kElements);
  const float scale = RmsScale(sums.values[0], args.row_packs * P::kElements, args.epsilon);
  const float along = scale * scale * (sums.values[1] / numbers);
  if (lane == 0) args.scales[row] = scale;
  for (size_t i = lane; i < args.row_packs; i += kLanes) {
    const P dy = LoadPack<P>(args.dy, row * args.row_packs + i);
    P pack = LoadPack<P>(args.x, row * args.row_packs + i);
    const P weight = LoadPack<P>(args.weight, i);
    for (size_t e = 0; e < P::kElements; ++e) {
      const float d = ToFloat(dy.values[e]) * ToFloat(weight.values[e]);
      pack.values[e] = FromFloat<T>(scale * (d - ToFloat(pack.values[e]) * along));
    }
    StorePack(args.dx, row * args.row_packs + i, pack);
  }
}

// The gradient of weight: sums over rows in two passes, always in the same order.

// First pass: every band of `band_rows` rows gives one row of fp32 sums; the last may be shorter.
template <typename T>
struct RmsNormWeightSums {
  const T* dy;
  const T* x;
  const float* scales;  // 1 / rms(x) of each row
  float* sums;
  size_t rows;
  size_t row_packs;
  size_t band_rows;

  MEMO_HOST_DEVICE size_t NumBands() const { return (rows + band_rows - 1) / band_rows; }
};

template <typename T>
MEMO_HOST_DEVICE size_t NumItems(const RmsNormWeightSums<T>& args) {
  return args.NumBands() * args.row_packs;
}

template <typename T>
MEMO_HOST_DEVICE void RunItem(const RmsNormWeightSums<T>& args, size_t item) {
  using P = Pack<T>;
  using Sums = Pack<float>;
  const size_t column = item % args.row_packs;
  const size_t first = item / args.row_packs * args.band_rows;
  const size_t end = first + args.band_rows < args.rows ? first + args.band_rows : args.rows;
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

// Second pass: the bands' sums are added up and rounded, four columns an item.
template <typename T>
struct RmsNormWeightGradient {
  const float* sums;
  T* d_weight;
  size_t bands;
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
  for (size_t band = 0; band < args.bands; ++band) {
    const Sums sums = LoadPack<Sums>(args.sums, band * NumItems(args) + item);
    for (size_t e = 0; e < Sums::kElements; ++e) total.values[e] += sums.values[e];
  }
  Pack<T, Sums::kElements> rounded;
  for (size_t e = 0; e < Sums::kElements; ++e) rounded.values[e] = FromFloat<T>(total.values[e]);
  StorePack(args.d_weight, item, rounded);
}

}  // namespace memo

#endif  // MEMO_KERNELS_RMS_NORM_H_
