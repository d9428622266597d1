// RMSNorm on the GPU.
#include "kernels/launch.h"
#include "kernels/rms_norm.h"
#include "kernels/rms_norm_weight.h"

namespace memo {

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

}  // namespace memo
