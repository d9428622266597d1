// The kernels: threads take items, warps take rows, one after the other, a grid apart; and what
// each is made for.
#include <algorithm>

#include "cuda/cuda_calls.h"
#include "kernels/activations.h"
#include "kernels/copy_rows.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/run.h"

namespace memo {

constexpr unsigned kThreads = 256;
constexpr size_t kMostBlocks = 65536;  // more work than threads is taken in turns

template <typename Args>
__global__ void __launch_bounds__(kThreads) ItemKernel(const Args args) {
  const size_t num_items = NumItems(args);
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t item = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < num_items;
       item += stride) {
    RunItem(args, item);
  }
}

// A lane and the one `distance` away both get the sum of both: AddOverLanes adds in this order.
template <int kSums>
__device__ void AddOverWarp(LaneSums<kSums>& sums) {
  for (unsigned distance = kLanes / 2; distance > 0; distance /= 2) {
    for (int i = 0; i < kSums; ++i) {
      sums.values[i] += __shfl_xor_sync(0xffffffffu, sums.values[i], distance);
    }
  }
}

template <typename Args>
__global__ void __launch_bounds__(kThreads) RowKernel(const Args args) {
  const unsigned lane = threadIdx.x % kLanes;
  const size_t first = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kLanes;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x / kLanes;
  for (size_t row = first; row < args.rows; row += stride) {
    LaneSums<Args::kSums> sums = SumLane(args, row, lane);
    AddOverWarp(sums);
    FinishLane(args, row, lane, sums);
  }
}

template <typename Args>
void Launch(void (*kernel)(Args), const Args& args, size_t threads, cudaStream_t stream) {
  if (threads == 0) return;
  const size_t blocks = std::min(kMostBlocks, (threads + kThreads - 1) / kThreads);
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(args);
  int device = 0;
  CudaCalls(device).Check(cudaGetDevice(&device), "cudaGetDevice");
  CudaCalls(device).Check(cudaGetLastError(), "kernel launch");
}

template <typename Args>
void RunItemsOnDevice(const Args& args, cudaStream_t stream) {
  Launch(ItemKernel<Args>, args, NumItems(args), stream);
}

template <typename Args>
void RunRowsOnDevice(const Args& args, cudaStream_t stream) {
  Launch(RowKernel<Args>, args, args.rows * kLanes, stream);
}

template void RunItemsOnDevice(const CopyRows&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<Gelu<NormalByErf>, float>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<Gelu<NormalByErf>, __half>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<Gelu<NormalByErf>, __nv_bfloat16>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<GeluBackward<NormalByErf>, float>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<GeluBackward<NormalByErf>, __half>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<GeluBackward<NormalByErf>, __nv_bfloat16>&,
                               cudaStream_t);
template void RunItemsOnDevice(const Elementwise<Gelu<NormalByTanh>, float>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<Gelu<NormalByTanh>, __half>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<Gelu<NormalByTanh>, __nv_bfloat16>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<GeluBackward<NormalByTanh>, float>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<GeluBackward<NormalByTanh>, __half>&,
                               cudaStream_t);
template void RunItemsOnDevice(const Elementwise<GeluBackward<NormalByTanh>, __nv_bfloat16>&,
                               cudaStream_t);
template void RunRowsOnDevice(const RmsNorm<float>&, cudaStream_t);
template void RunRowsOnDevice(const RmsNorm<__half>&, cudaStream_t);
template void RunRowsOnDevice(const RmsNorm<__nv_bfloat16>&, cudaStream_t);
template void RunRowsOnDevice(const RmsNormBackward<float>&, cudaStream_t);
template void RunRowsOnDevice(const RmsNormBackward<__half>&, cudaStream_t);
template void RunRowsOnDevice(const RmsNormBackward<__nv_bfloat16>&, cudaStream_t);
template void RunItemsOnDevice(const RmsNormWeightSums<float>&, cudaStream_t);
template void RunItemsOnDevice(const RmsNormWeightSums<__half>&, cudaStream_t);
template void RunItemsOnDevice(const RmsNormWeightSums<__nv_bfloat16>&, cudaStream_t);
template void RunItemsOnDevice(const RmsNormWeightGradient<float>&, cudaStream_t);
template void RunItemsOnDevice(const RmsNormWeightGradient<__half>&, cudaStream_t);
template void RunItemsOnDevice(const RmsNormWeightGradient<__nv_bfloat16>&, cudaStream_t);
template void RunItemsOnDevice(const Rope<float>&, cudaStream_t);
template void RunItemsOnDevice(const Rope<__half>&, cudaStream_t);
template void RunItemsOnDevice(const Rope<__nv_bfloat16>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<Swiglu, float>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<Swiglu, __half>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<Swiglu, __nv_bfloat16>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<SwigluBackward, float>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<SwigluBackward, __half>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<SwigluBackward, __nv_bfloat16>&, cudaStream_t);

}  // namespace memo
