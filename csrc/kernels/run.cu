// Every kernel: a thread takes one item after the other, a grid apart.
#include <algorithm>

#include "device/cuda_calls.h"
#include "kernels/run.h"

namespace memo {
namespace {

constexpr unsigned kThreads = 256;
constexpr size_t kMostBlocks = 65536;  // more items than threads are taken in turns

template <typename Args>
__global__ void __launch_bounds__(kThreads) Kernel(const Args args) {
  const size_t num_items = NumItems(args);
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t item = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < num_items;
       item += stride) {
    RunItem(args, item);
  }
}

}  // namespace

template <typename Args>
void RunOnDevice(const Args& args, cudaStream_t stream) {
  const size_t num_items = NumItems(args);
  if (num_items == 0) return;
  const size_t blocks = std::min(kMostBlocks, (num_items + kThreads - 1) / kThreads);
  Kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(args);
  int device = 0;
  CudaCalls(device).Check(cudaGetDevice(&device), "cudaGetDevice");
  CudaCalls(device).Check(cudaGetLastError(), "kernel launch");
}

template void RunOnDevice(const CopyRows&, cudaStream_t);
template void RunOnDevice(const Swiglu<float>&, cudaStream_t);
template void RunOnDevice(const Swiglu<__half>&, cudaStream_t);
template void RunOnDevice(const Swiglu<__nv_bfloat16>&, cudaStream_t);
template void RunOnDevice(const SwigluBackward<float>&, cudaStream_t);
template void RunOnDevice(const SwigluBackward<__half>&, cudaStream_t);
template void RunOnDevice(const SwigluBackward<__nv_bfloat16>&, cudaStream_t);

}  // namespace memo
