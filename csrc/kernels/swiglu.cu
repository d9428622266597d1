// SwiGLU on the GPU.
#include "kernels/launch.h"
#include "kernels/swiglu.h"

namespace memo {

template void RunItemsOnDevice(const Elementwise<Swiglu, float>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<Swiglu, __half>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<Swiglu, __nv_bfloat16>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<SwigluBackward, float>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<SwigluBackward, __half>&, cudaStream_t);
template void RunItemsOnDevice(const Elementwise<SwigluBackward, __nv_bfloat16>&, cudaStream_t);

}  // namespace memo
