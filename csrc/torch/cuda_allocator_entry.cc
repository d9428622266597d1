// The process's CUDA allocators as C functions, for the hook that torch is given
// (cuda_allocator_hook.cc). They throw nothing: an allocation says what became of it, what goes
// wrong elsewhere is kept for CudaAllocators::LastError.
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

// What `body` throws is kept.
template <typename Body>
void KeepFailureOf(Body body) noexcept {
  try {
    body();
  } catch (const std::exception& failed) {
    CudaAllocators::OfProcess().KeepError(failed.what());
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

// Memory for work on `stream` in `data`: null for 0 bytes, and when it is not served. Then `error`
// says why, cut to `error_bytes` bytes with a closing zero. The numbers are the hook's as well.
enum Outcome : int { kServed = 0, kRefused = 1, kFailed = 2 };
MEMO_EXPORT int memo_cuda_alloc(void** data, ssize_t size, int device, cudaStream_t stream,
                                char* error, size_t error_bytes) {
  *data = nullptr;
  if (size == 0) return kServed;
  try {
    *data = CudaAllocators::OfProcess().Of(device).Alloc(static_cast<size_t>(size), stream);
    return kServed;
  } catch (const memo::DeviceMemoryExceeded& refused) {
    std::snprintf(error, error_bytes, "%s", refused.what());
    return kRefused;
  } catch (const std::exception& failed) {
    std::snprintf(error, error_bytes, "%s", failed.what());
    return kFailed;
  }
}

// A device that has failed, or a fork, gets nothing back.
MEMO_EXPORT void memo_cuda_free(void* data, ssize_t, int device, cudaStream_t stream) {
  if (data == nullptr) return;
  KeepFailureOf([&] { FreeOrAbort(data, device, stream); });
}

// For CUDAPluggableAllocator::set_record_stream_fn: `stream` works on `data` as well. Memory of
// others is left alone.
MEMO_EXPORT void memo_cuda_record_stream(void* data, cudaStream_t stream) {
  if (data == nullptr) return;
  KeepFailureOf([&] { CudaAllocators::OfProcess().Owning(data).RecordStream(data, stream); });
}
