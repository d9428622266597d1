// torch's own way to get CPU memory, behind the hook's two functions: what the arena is measured
// against. Compiled by posix_allocator.py.
#include <cstddef>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr size_t kAlignment = 64;  // as torch aligns its CPU tensors

// Where tensors came from before, and how those are freed.
struct Before {
  void* context;
  void (*free)(void* context, void* data);
  const char* begin;
  const char* end;
};
Before before;

}  // namespace

extern "C" void set_before(void* context, void (*free)(void*, void*), const char* begin,
                           const char* end) {
  before = Before{context, free, begin, end};
}

extern "C" void* posix_alloc(void*, size_t bytes, char* error, size_t error_bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, kAlignment, bytes) == 0) return data;
  std::snprintf(error, error_bytes, "posix_memalign refused %zu bytes", bytes);
  return nullptr;
}

extern "C" void posix_free(void*, void* data) {
  const char* address = static_cast<const char*>(data);
  if (address >= before.begin && address < before.end) {
    before.free(before.context, data);
  } else {
    std::free(data);
  }
}
