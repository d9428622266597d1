// The functions that torch.cuda.memory.CUDAPluggableAllocator takes by name, in front of
// cuda_allocator_entry.cc. torch does not look at what its allocator gives it: where there is no
// memory, only an error of torch's own says so. Compiled on the user's machine against the torch
// that is installed there, because c10's errors have no stable binary interface. No CUDA header is
// needed.
//
// Nothing between here and torch's callers holds a lock or is noexcept: its own allocator throws
// the same error at the same place.
#include <c10/util/Exception.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace {

constexpr size_t kErrorBytes = 512;

// As cuda_allocator_entry.cc has them.
enum Outcome : int { kServed = 0, kRefused = 1, kFailed = 2 };
using Alloc = int(void** data, ssize_t bytes, int device, void* stream, char* error,
                  size_t error_bytes);
using Free = void(void* data, ssize_t bytes, int device, void* stream);

// What stands behind the functions.
struct Backend {
  Alloc* alloc = nullptr;
  Free* free = nullptr;
};

// Global because torch takes plain functions.
Backend& TheBackend() {
  static Backend backend;
  return backend;
}

}  // namespace

// Integers are addresses of Backend's members. To be called before the first request.
extern "C" void memo_set_cuda_backend(uintptr_t alloc, uintptr_t free) {
  TheBackend() = Backend{reinterpret_cast<Alloc*>(alloc), reinterpret_cast<Free*>(free)};
}

// Memory for work on `stream`; null for 0 bytes. Throws c10::OutOfMemoryError, which is
// torch.OutOfMemoryError in Python, and c10::Error where it is no matter of room.
extern "C" void* memo_torch_cuda_alloc(ssize_t bytes, int device, void* stream) {
  char error[kErrorBytes] = "";
  void* data = nullptr;
  const int outcome = TheBackend().alloc(&data, bytes, device, stream, error, kErrorBytes);
  TORCH_CHECK_WITH(OutOfMemoryError, outcome != kRefused, error);
  TORCH_CHECK(outcome == kServed, error);
  return data;
}

extern "C" void memo_torch_cuda_free(void* data, ssize_t bytes, int device, void* stream) {
  TheBackend().free(data, bytes, device, stream);
}
