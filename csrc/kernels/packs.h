// 16 bytes of numbers at a time: what a thread of a GPU loads and stores best.
#ifndef MEMO_KERNELS_PACKS_H_
#define MEMO_KERNELS_PACKS_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>

// Element code is compiled twice: by nvcc for the GPU, by the host's compiler as its reference.
#ifdef __CUDACC__
#define MEMO_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MEMO_HOST_DEVICE inline
#endif

// Four rounds of a loop together, so that their loads are under way at once.
#ifdef __CUDA_ARCH__
#define MEMO_UNROLL_4 _Pragma("unroll 4")
#else
#define MEMO_UNROLL_4
#endif

namespace memo {

template <typename T, size_t kCount = 16 / sizeof(T)>
struct alignas(sizeof(T) * kCount) Pack {
  static constexpr size_t kElements = kCount;
  T values[kElements];
};

template <typename P, typename T>
MEMO_HOST_DEVICE P LoadPack(const T* array, size_t index) {
  return reinterpret_cast<const P*>(array)[index];
}

template <typename P, typename T>
MEMO_HOST_DEVICE void StorePack(T* array, size_t index, const P& pack) {
  reinterpret_cast<P*>(array)[index] = pack;
}

// Arithmetic is in fp32; a result is rounded once, to nearest even.
MEMO_HOST_DEVICE float ToFloat(float value) { return value; }
MEMO_HOST_DEVICE float ToFloat(__half value) { return __half2float(value); }
MEMO_HOST_DEVICE float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
MEMO_HOST_DEVICE T FromFloat(float value);
template <>
MEMO_HOST_DEVICE float FromFloat<float>(float value) {
  return value;
}
template <>
MEMO_HOST_DEVICE __half FromFloat<__half>(float value) {
  return __float2half_rn(value);
}
template <>
MEMO_HOST_DEVICE __nv_bfloat16 FromFloat<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

}  // namespace memo

#endif  // MEMO_KERNELS_PACKS_H_
