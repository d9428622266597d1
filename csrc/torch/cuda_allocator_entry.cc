// The functions that torch.cuda.memory.CUDAPluggableAllocator takes by name. They cannot throw:
// what went wrong is kept for CudaAllocators::LastError.
#include <cuda_runtime_api.h>
#include <sys/types.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "base/check.h"
#include "cuda/cuda_allocator.h"

#define MEMO_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using memo::CudaAllocators;

// Gives whether `body` ran; what it threw is kept.
template <typename Body>
bool Ran(Body body) noexcept {
  try {
    body();
    return true;
  } catch (const std::exception& failed) {
    CudaAllocators::OfProcess().KeepError(failed.what());
    return false;
  }
}

// Going on after a wrong free would corrupt memory, and there is no caller to raise in.
void FreeOrAbort(void* data, int device, cudaStream_t stream) {
  try {
    CudaAllocators::OfProcess().Of(device).Free(data, stream);
  } catch (const memo::InvalidArgument& misuse) {
    std::fprintf(stderr, "memo_train: %s\n", misuse.what());
    std::abort();
  }
}

}  // namespace

// Memory for work on `stream`; null for 0 bytes, and null when it is refused.
MEMO_EXPORT void* memo_cuda_alloc(ssize_t size, int device, cudaStream_t stream) {
  if (size == 0) return nullptr;
  void* data = nullptr;
  Ran([&] {
    data = CudaAllocators::OfProcess().Of(device).Alloc(static_cast<size_t>(size), stream);
  });
  return data;
}

// A device that has failed, or a fork, gets nothing back.
MEMO_EXPORT void memo_cuda_free(void* data, ssize_t, int device, cudaStream_t stream) {
  if (data == nullptr) return;
  Ran([&] { FreeOrAbort(data, device, stream); });
}

// For CUDAPluggableAllocator::set_record_stream_fn: `stream` works on `data` as well. Memory of
// others is left alone.
MEMO_EXPORT void memo_cuda_record_stream(void* data, cudaStream_t stream) {
  if (data == nullptr) return;
  Ran([&] { CudaAllocators::OfProcess().Owning(data).RecordStream(data, stream); });
}
