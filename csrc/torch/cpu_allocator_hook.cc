// Makes torch take its CPU tensors from an arena. Compiled on the user's machine against the torch
// that is installed there, because c10::Allocator has no stable binary interface; everything else
// reaches it through C functions.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>

namespace {

constexpr size_t kErrorBytes = 512;
constexpr uint8_t kPriority = 100;  // above everything torch registers itself

// What stands behind the allocator; see CpuDevice::AllocForHook.
struct Backend {
  void* context = nullptr;
  void* (*alloc)(void* context, size_t bytes, char* error, size_t error_bytes) = nullptr;
  void (*free)(void* context, void* data) = nullptr;
};

// Global because torch's deleters are plain functions of the data pointer.
Backend& TheBackend() {
  static Backend backend;
  return backend;
}

void Delete(void* data) {
  if (data != nullptr) TheBackend().free(TheBackend().context, data);
}

class ArenaAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes == 0 ? nullptr : AllocOrThrow(bytes);
    // Data and context are the same pointer: oneDNN uses raw_allocate, which insists on it.
    return c10::DataPtr(data, data, &Delete, c10::Device(c10::DeviceType::CPU));
  }

  c10::DeleterFnPtr raw_deleter() const override { return &Delete; }

  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }

 private:
  static void* AllocOrThrow(size_t bytes) {
    char error[kErrorBytes] = "";
    void* data = TheBackend().alloc(TheBackend().context, bytes, error, kErrorBytes);
    TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, error);
    return data;
  }
};

}  // namespace

// Integers are addresses of Backend's members. Returns 1, or 0 and changes nothing if another
// allocator of higher priority is in place.
extern "C" int memo_install_cpu_allocator(uintptr_t context, uintptr_t alloc, uintptr_t free) {
  static ArenaAllocator allocator;
  Backend& backend = TheBackend();
  backend.context = reinterpret_cast<void*>(context);
  backend.alloc = reinterpret_cast<decltype(backend.alloc)>(alloc);
  backend.free = reinterpret_cast<decltype(backend.free)>(free);
  c10::SetCPUAllocator(&allocator, kPriority);
  return c10::GetCPUAllocator() == &allocator ? 1 : 0;
}
