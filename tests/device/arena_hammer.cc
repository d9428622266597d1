// Native threads that allocate, mark, check and free without an interpreter lock between them.
// Compiled by test_arena_threads.py; reaches the arena through the hook's two functions.
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Alloc = void* (*)(void* arena, size_t bytes, char* error, size_t error_bytes);
using Free = void (*)(void* arena, void* data);

struct Block {
  char* data;
  size_t bytes;
};

// Returns how many blocks had lost their mark (or were refused): 0 unless two threads shared one.
int64_t Work(void* arena, Alloc alloc, Free free, int mark, int rounds) {
  std::mt19937 random(static_cast<unsigned>(mark));
  std::vector<Block> blocks;
  char error[256];
  int64_t bad = 0;
  for (int round = 0; round < rounds; ++round) {
    if (blocks.size() > 20 || (!blocks.empty() && random() % 2 == 0)) {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      const Block block = blocks.back();
      blocks.pop_back();
      for (size_t i = 0; i < block.bytes; ++i) {
        if (block.data[i] != static_cast<char>(mark)) {
          ++bad;
          break;
        }
      }
      free(arena, block.data);
      continue;
    }
    const size_t bytes = 1 + random() % 300;
    char* data = static_cast<char*>(alloc(arena, bytes, error, sizeof(error)));
    if (data == nullptr) return bad + 1;
    std::memset(data, mark, bytes);
    blocks.push_back(Block{data, bytes});
  }
  for (const Block& block : blocks) free(arena, block.data);
  return bad;
}

}  // namespace

extern "C" int64_t hammer(uintptr_t arena, uintptr_t alloc, uintptr_t free, int num_threads,
                          int rounds) {
  std::vector<int64_t> bad(static_cast<size_t>(num_threads));
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&, i] {
      bad[static_cast<size_t>(i)] =
          Work(reinterpret_cast<void*>(arena), reinterpret_cast<Alloc>(alloc),
               reinterpret_cast<Free>(free), i + 1, rounds);
    });
  }
  for (std::thread& thread : threads) thread.join();
  int64_t sum = 0;
  for (const int64_t count : bad) sum += count;
  return sum;
}
