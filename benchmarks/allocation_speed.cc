// Asks an allocator for a step's memory, in the step's order, and gives the seconds that this took.
// Compiled by allocation_speed.py.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace {

using Alloc = void* (*)(void* context, size_t bytes, char* error, size_t error_bytes);
using Free = void (*)(void* context, void* data);

void* AllocWithMalloc(void*, size_t bytes, char*, size_t) { return std::malloc(bytes); }
void FreeWithFree(void*, void* data) { std::free(data); }

}  // namespace

// events: k to ask for request k, ~k to give it back. Returns a negative number on a refusal.
extern "C" double run_step(void* context, Alloc alloc, Free free, const int64_t* events,
                           int64_t num_events, const int64_t* bytes, int64_t num_requests) {
  std::vector<void*> data(static_cast<size_t>(num_requests));
  char error[256];
  const auto begun = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < num_events; ++i) {
    const int64_t event = events[i];
    if (event < 0) {
      free(context, data[static_cast<size_t>(~event)]);
      continue;
    }
    void* found = alloc(context, static_cast<size_t>(bytes[event]), error, sizeof(error));
    if (found == nullptr) return -1;
    data[static_cast<size_t>(event)] = found;
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
  return took.count();
}

extern "C" uintptr_t malloc_entry() { return reinterpret_cast<uintptr_t>(&AllocWithMalloc); }
extern "C" uintptr_t free_entry() { return reinterpret_cast<uintptr_t>(&FreeWithFree); }
