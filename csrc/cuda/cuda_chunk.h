// A piece of device memory got by one cudaMalloc, and which of its addresses are in use.
#ifndef MEMO_CUDA_CUDA_CHUNK_H_
#define MEMO_CUDA_CUDA_CHUNK_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/cuda_calls.h"
#include "memory/address_space.h"

namespace memo {

// All that lives in it was asked for on one stream, so that an address may be handed out again as
// soon as it is free: what the stream does with it later comes after what it did before.
class CudaChunk {
 public:
  // Takes over `data`, `bytes` of device memory.
  CudaChunk(CudaCalls* calls, char* data, size_t bytes, cudaStream_t stream)
      : calls_(calls), data_(data), space_(bytes), stream_(stream) {}
  // Gives the memory back. All work on it must be over.
  ~CudaChunk() {
    const CudaGuard guard(calls_, std::nothrow);
    calls_->Keep(cudaFree(data_), "cudaFree");
  }
  CudaChunk(const CudaChunk&) = delete;
  CudaChunk& operator=(const CudaChunk&) = delete;

  char* data() const { return data_; }
  size_t bytes() const { return space_.limit_bytes(); }
  AddressSpace& space() { return space_; }
  cudaStream_t stream() const { return stream_; }
  // For a chunk in which nothing lives, when `stream` waits for all that the one before was given.
  void set_stream(cudaStream_t stream) { stream_ = stream; }

  bool Covers(const void* data) const {
    const auto begin = reinterpret_cast<uintptr_t>(data_);
    const auto address = reinterpret_cast<uintptr_t>(data);
    return address >= begin && address - begin < bytes();
  }
  // Nothing lives in it, and no step is under way.
  bool Idle() const { return space_.counters().live_allocations == 0 && !space_.in_step(); }

 private:
  CudaCalls* const calls_;
  char* const data_;
  AddressSpace space_;
  cudaStream_t stream_;
};

}  // namespace memo

#endif  // MEMO_CUDA_CUDA_CHUNK_H_
