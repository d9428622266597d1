// Rotary positions on the GPU.
#include "kernels/launch.h"
#include "kernels/rope.h"

namespace memo {

template void RunItemsOnDevice(const Rope<float>&, cudaStream_t);
template void RunItemsOnDevice(const Rope<__half>&, cudaStream_t);
template void RunItemsOnDevice(const Rope<__nv_bfloat16>&, cudaStream_t);

}  // namespace memo
