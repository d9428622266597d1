// RMSNorm, y = x / rms(x) * weight over rows, forward and backward.
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467.
#ifndef MEMO_KERNELS_RMS_NORM_H_
#define MEMO_KERNELS_RMS_NORM_H_

#include <cmath>

#include "kernels/packs.h"
#include "kernels/row_lanes.h"

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

template <typename T>
MEMO_HOST_DEVICE float NumbersOfRow(size_t row_packs) {
  return static_cast<float>(row_packs * Pack<T>::kElements);
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
  const float mean = sums.values[0] / NumbersOfRow<T>(args.row_packs);
  const float scale = 1.0f / sqrtf(mean + args.epsilon);
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
  const float numbers = NumbersOfRow<T>(args.row_packs);
  const float scale = 1.0f / sqrtf(sums.values[0] / numbers + args.epsilon);
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

}  // namespace memo

#endif  // MEMO_KERNELS_RMS_NORM_H_
