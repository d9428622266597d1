// The allocators of all GPUs of the process, for callers that can pass no object.
#ifndef MEMO_CUDA_CUDA_ALLOCATORS_H_
#define MEMO_CUDA_CUDA_ALLOCATORS_H_

#include <array>
#include <memory>
#include <mutex>
#include <string>

#include "cuda/cuda_allocator.h"

namespace memo {

// Any thread may call any method.
class CudaAllocators {
 public:
  // Global because a tensor library's hooks are plain functions. Never destroyed: CUDA may be gone
  // before the process is.
  static CudaAllocators& OfProcess();

  // The allocator of GPU `ordinal`, made when it is first asked for. Throws InvalidArgument.
  CudaAllocator& Of(int ordinal);
  // That of the GPU whose memory `data` is. Throws InvalidArgument if it is none's.
  CudaAllocator& Owning(const void* data);

  // Why the last request was refused that could not throw; empty if none was.
  std::string LastError() const;
  void KeepError(const char* text);

 private:
  static constexpr int kMostDevices = 64;

  struct Slot {
    std::once_flag made;
    std::unique_ptr<CudaAllocator> allocator;
  };

  std::array<Slot, kMostDevices> slots_;
  mutable std::mutex mutex_;  // guards what follows
  std::string last_error_;
};

}  // namespace memo

#endif  // MEMO_CUDA_CUDA_ALLOCATORS_H_
