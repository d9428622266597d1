#include "cuda/cuda_allocators.h"

#include "base/check.h"

namespace memo {

CudaAllocators& CudaAllocators::OfProcess() {
  static CudaAllocators* const all = std::make_unique<CudaAllocators>().release();
  return *all;
}

CudaAllocator& CudaAllocators::Of(int ordinal) {
  MEMO_REQUIRE(InvalidArgument, 0 <= ordinal && ordinal < kMostDevices)
      << "there is no CUDA device " << ordinal << "; devices are 0 to " << kMostDevices - 1;
  Slot& slot = slots_[static_cast<size_t>(ordinal)];
  std::call_once(slot.made, [&] { slot.allocator = std::make_unique<CudaAllocator>(ordinal); });
  return *slot.allocator;
}

CudaAllocator& CudaAllocators::Owning(const void* data) {
  cudaPointerAttributes attributes = {};
  CudaCalls(0).Check(cudaPointerGetAttributes(&attributes, data), "cudaPointerGetAttributes");
  MEMO_REQUIRE(InvalidArgument, attributes.type == cudaMemoryTypeDevice)
      << data << " is not memory of a CUDA device";
  return Of(attributes.device);
}

std::string CudaAllocators::LastError() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return last_error_;
}

void CudaAllocators::KeepError(const char* text) {
  std::lock_guard<std::mutex> lock(mutex_);
  last_error_ = text;
}

}  // namespace memo
