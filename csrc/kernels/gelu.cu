// GELU on the GPU.
#include "kernels/gelu.h"
#include "kernels/launch.h"

namespace memo {

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

}  // namespace memo
