// Every CUDA call of one device: checked, and where it cannot throw, kept for the next that can.
//
//   calls.Check(cudaMalloc(&data, bytes), "cudaMalloc", bytes);     throws CudaError
//   calls.Keep(cudaFree(data), "cudaFree");                         in destructors
#ifndef MEMO_CUDA_CUDA_CALLS_H_
#define MEMO_CUDA_CUDA_CALLS_H_

#include <cuda_runtime_api.h>
#include <sys/types.h>

#include <cstddef>
#include <mutex>
#include <new>
#include <optional>

#include "base/check.h"

namespace memo {

// Any thread may call any method.
class CudaCalls {
 public:
  explicit CudaCalls(int ordinal);

  int ordinal() const { return ordinal_; }

  // Whether the calling process is the one that made the object. After fork() no CUDA call works.
  bool InOwner() const;
  // Throws ForkedProcess in a fork, and CudaError if a call failed that could not throw.
  void CheckUsable() const;

  // Throws CudaError unless `code` is cudaSuccess. `bytes`: what the call was about, 0 for none.
  void Check(cudaError_t code, const char* call, size_t bytes = 0) const;

  // Check for callers that must not throw: CheckUsable throws the first failure from then on.
  void Keep(cudaError_t code, const char* call) noexcept;

 private:
  struct Failure {
    cudaError_t code;
    const char* call;
  };

  [[noreturn]] void Throw(const Failure& failure, size_t bytes) const;

  const int ordinal_;
  const pid_t owner_;
  mutable std::mutex mutex_;
  std::optional<Failure> kept_;
};

// Makes a device current in the calling thread, and the one before when it goes out of scope.
class CudaGuard {
 public:
  // Throws CudaError.
  explicit CudaGuard(CudaCalls* calls);
  // For destructors: keeps a failure instead.
  CudaGuard(CudaCalls* calls, std::nothrow_t) noexcept;
  ~CudaGuard();
  CudaGuard(const CudaGuard&) = delete;
  CudaGuard& operator=(const CudaGuard&) = delete;

 private:
  CudaCalls* const calls_;
  int before_ = 0;
};

}  // namespace memo

#endif  // MEMO_CUDA_CUDA_CALLS_H_
