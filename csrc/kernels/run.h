// Runs the element code: on a stream of the GPU, or on this thread as the GPU's reference.
#ifndef MEMO_KERNELS_RUN_H_
#define MEMO_KERNELS_RUN_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <optional>

namespace memo {

// Sums over a row: its packs are shared out among lanes, whose sums are then added up. Lanes are
// the threads of a warp on the GPU, the numbers of an array on the host; both add in one order.
constexpr unsigned kLanes = 32;

template <int kSums>
struct LaneSums {
  float values[kSums];
};

// Starts the kernel on `stream` of the current device. Throws CudaError.
template <typename Args>
void RunItemsOnDevice(const Args& args, cudaStream_t stream);
template <typename Args>
void RunRowsOnDevice(const Args& args, cudaStream_t stream);

template <int kSums>
void AddOverLanes(LaneSums<kSums> (&sums)[kLanes]) {
  for (unsigned distance = kLanes / 2; distance > 0; distance /= 2) {
    for (unsigned lane = 0; lane < distance; ++lane) {
      for (int i = 0; i < kSums; ++i) sums[lane].values[i] += sums[lane + distance].values[i];
    }
  }
}

// On `stream`, or on this thread without one.
template <typename Args>
void RunItems(const Args& args, std::optional<cudaStream_t> stream) {
  if (stream) return RunItemsOnDevice(args, *stream);
  const size_t num_items = NumItems(args);
  for (size_t item = 0; item < num_items; ++item) RunItem(args, item);
}

template <typename Args>
void RunRows(const Args& args, std::optional<cudaStream_t> stream) {
  if (stream) return RunRowsOnDevice(args, *stream);
  for (size_t row = 0; row < args.rows; ++row) {
    LaneSums<Args::kSums> sums[kLanes];
    for (unsigned lane = 0; lane < kLanes; ++lane) sums[lane] = SumLane(args, row, lane);
    AddOverLanes(sums);
    for (unsigned lane = 0; lane < kLanes; ++lane) FinishLane(args, row, lane, sums[0]);
  }
}

}  // namespace memo

#endif  // MEMO_KERNELS_RUN_H_
