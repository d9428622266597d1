// The arena as two C functions: what the tensor library's allocator hook is given.
#ifndef MEMO_CPU_ALLOCATOR_ENTRY_H_
#define MEMO_CPU_ALLOCATOR_ENTRY_H_

#include <cstddef>

namespace memo {

// `arena` is an Arena*. Returns memory, or null after writing why, cut to `error_bytes` bytes
// with a closing zero, to `error`. Never throws.
void* AllocForHook(void* arena, size_t bytes, char* error, size_t error_bytes) noexcept;

// Ends the process with a message if `data` is not a live allocation of the arena: there is no
// caller to raise in, and going on would corrupt memory.
void FreeForHook(void* arena, void* data) noexcept;

}  // namespace memo

#endif  // MEMO_CPU_ALLOCATOR_ENTRY_H_
