#include "cpu/allocator_entry.h"

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "memory/arena.h"

namespace memo {

void* AllocForHook(void* arena, size_t bytes, char* error, size_t error_bytes) noexcept {
  try {
    return static_cast<Arena*>(arena)->Alloc(bytes);
  } catch (const std::exception& refused) {
    std::snprintf(error, error_bytes, "%s", refused.what());
    return nullptr;
  }
}

void FreeForHook(void* arena, void* data) noexcept {
  try {
    static_cast<Arena*>(arena)->Free(data);
  } catch (const std::exception& misuse) {
    std::fprintf(stderr, "memo_train: %s\n", misuse.what());
    std::abort();
  }
}

}  // namespace memo
