#include "cuda/cuda_pages.h"

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace memo {

CudaPages::CudaPages(CudaCalls* calls) : calls_(calls) {
  calls_->Check(cudaDeviceGetAttribute(&numa_node_, cudaDevAttrHostNumaId, calls_->ordinal()),
                "cudaDeviceGetAttribute");
}

bool CudaPages::Pin(void* data, size_t bytes) {
  const CudaGuard guard(calls_);
  // A fork would make pages copy-on-write, and this process could then write to a copy while the
  // device goes on with the original.
  if (madvise(data, bytes, MADV_DONTFORK) != 0) return false;
  PreferNode(data, bytes);
  const cudaError_t code = cudaHostRegister(data, bytes, cudaHostRegisterPortable);
  if (code == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return false;
  }
  calls_->Check(code, "cudaHostRegister", bytes);
  return true;
}

void CudaPages::Unpin(void* data, size_t) noexcept {
  const CudaGuard guard(calls_, std::nothrow);
  calls_->Keep(cudaHostUnregister(data), "cudaHostUnregister");
}

void CudaPages::PreferNode(void* data, size_t bytes) const {
  constexpr int kMaskBits = 64;
  if (numa_node_ < 0 || numa_node_ >= kMaskBits) return;
  const unsigned long mask = 1UL << numa_node_;
  // Only speed hangs on it, and containers may forbid the call: a refusal is no error.
  syscall(SYS_mbind, data, bytes, MPOL_PREFERRED, &mask, kMaskBits + 1, 0);
}

}  // namespace memo
