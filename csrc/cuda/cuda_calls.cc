#include "cuda/cuda_calls.h"

#include <unistd.h>

#include "base/bytes.h"

namespace memo {

CudaCalls::CudaCalls(int ordinal) : ordinal_(ordinal), owner_(getpid()) {}

bool CudaCalls::InOwner() const { return getpid() == owner_; }

void CudaCalls::CheckUsable() const {
  MEMO_REQUIRE(ForkedProcess, InOwner())
      << "process " << getpid() << " was forked from process " << owner_ << ", which owns CUDA "
      << "device " << ordinal_ << "; start worker processes with the spawn method";
  std::lock_guard<std::mutex> lock(mutex_);
  if (kept_) Throw(*kept_, 0);
}

void CudaCalls::Check(cudaError_t code, const char* call, size_t bytes) const {
  if (code == cudaSuccess) return;
  // The runtime would report a failure once more to whoever asks next.
  static_cast<void>(cudaGetLastError());
  Throw(Failure{code, call}, bytes);
}

void CudaCalls::Keep(cudaError_t code, const char* call) noexcept {
  if (code == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  std::lock_guard<std::mutex> lock(mutex_);
  if (!kept_) kept_ = Failure{code, call};
}

void CudaCalls::Throw(const Failure& failure, size_t bytes) const {
  Message message;
  message << failure.call << " failed on CUDA device " << ordinal_ << ": "
          << cudaGetErrorName(failure.code) << " (code " << failure.code << "), "
          << cudaGetErrorString(failure.code);
  if (bytes > 0) message << "; asked for " << FormatBytes(bytes);
  throw CudaError(message.Text());
}

CudaGuard::CudaGuard(CudaCalls* calls) : calls_(calls) {
  calls_->Check(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ == calls_->ordinal()) return;
  calls_->Check(cudaSetDevice(calls_->ordinal()), "cudaSetDevice");
}

CudaGuard::CudaGuard(CudaCalls* calls, std::nothrow_t) noexcept
    : calls_(calls), before_(calls->ordinal()) {
  calls_->Keep(cudaGetDevice(&before_), "cudaGetDevice");
  if (before_ == calls_->ordinal()) return;
  calls_->Keep(cudaSetDevice(calls_->ordinal()), "cudaSetDevice");
}

CudaGuard::~CudaGuard() {
  if (before_ != calls_->ordinal()) calls_->Keep(cudaSetDevice(before_), "cudaSetDevice");
}

}  // namespace memo
