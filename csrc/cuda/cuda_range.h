// Addresses of a GPU with memory behind the first of them, which grows and shrinks at its end.
#ifndef MEMO_CUDA_CUDA_RANGE_H_
#define MEMO_CUDA_CUDA_RANGE_H_

#include <cuda.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "cuda/cuda_calls.h"

namespace memo {

// The driver's functions for addresses apart from memory, looked up at run time: the extension is
// not linked against the driver. Source: CUDA driver API, virtual memory management.
class CudaDriver {
 public:
  // Null where driver or device has no such functions. Needs a guard.
  static std::unique_ptr<const CudaDriver> Find(const CudaCalls& calls);

  CUresult (*address_reserve)(CUdeviceptr*, size_t, size_t, CUdeviceptr, unsigned long long) = {};
  CUresult (*address_free)(CUdeviceptr, size_t) = {};
  CUresult (*create)(CUmemGenericAllocationHandle*, size_t, const CUmemAllocationProp*,
                     unsigned long long) = {};
  CUresult (*release)(CUmemGenericAllocationHandle) = {};
  CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle,
                  unsigned long long) = {};
  CUresult (*unmap)(CUdeviceptr, size_t) = {};
  CUresult (*set_access)(CUdeviceptr, size_t, const CUmemAccessDesc*, size_t) = {};

  // Memory comes in multiples of it.
  size_t granularity_bytes = 0;
};

// Whoever owns it sees to it that one thread at a time grows or shrinks it. Needs a guard.
class CudaRange {
 public:
  // No memory yet. Throws CudaError. `piece_bytes`: memory is got and given back in pieces of at
  // most this size; it and `most_bytes` are rounded up to the granularity.
  CudaRange(CudaCalls* calls, const CudaDriver* driver, size_t most_bytes, size_t piece_bytes);
  // All work on it must be over.
  ~CudaRange();
  CudaRange(const CudaRange&) = delete;
  CudaRange& operator=(const CudaRange&) = delete;

  char* data() const { return reinterpret_cast<char*>(data_); }
  size_t bytes() const { return bytes_; }

  // `bytes` more, a multiple of the granularity. False, and nothing has changed, if the device has
  // no room or the addresses are at their end. Throws CudaError.
  bool Grow(size_t bytes);
  // Where the range ends when all pieces are given back that lie above `used_bytes` wholly.
  size_t EndAbove(size_t used_bytes) const;
  // Gives back what lies above `end_bytes`, one of EndAbove. Work on it must be over.
  void ShrinkTo(size_t end_bytes) noexcept;

 private:
  struct Piece {
    CUmemGenericAllocationHandle handle;
    size_t bytes;
  };

  bool AddPiece(size_t bytes);

  CudaCalls* const calls_;
  const CudaDriver* const driver_;
  const size_t most_bytes_;
  const size_t piece_bytes_;
  CUdeviceptr data_ = 0;
  size_t bytes_ = 0;
  std::vector<Piece> pieces_;  // from the start on, without gaps
};

}  // namespace memo

#endif  // MEMO_CUDA_CUDA_RANGE_H_
