#include <random>
#include <thread>
#include <vector>

#include "allocator/checks.h"

namespace {

constexpr int kThreads = 3;
constexpr int kThreadRounds = 60;

// Blocks on the thread's own stream, each read by a stream that all threads share.
void GoRounds(memo::CudaAllocator* allocator, int thread, cudaStream_t shared, bool* same) {
  std::mt19937_64 random(static_cast<uint64_t>(thread));
  const cudaStream_t stream = sim::Machine::Get().NewStream(0);
  for (int round = 0; round < kThreadRounds; ++round) {
    const size_t bytes = 1 + random() % 10000;
    const char value = static_cast<char>(thread * 60 + round);
    char* const data = static_cast<char*>(allocator->Alloc(bytes, stream));
    Fill(stream, data, bytes, value);
    if (random() % 2 == 0) {
      Order(stream, shared);
      Look(shared, data, bytes, value, same);
      allocator->RecordStream(data, shared);
    }
    allocator->Free(data, stream);
    if (round % 20 == 19) allocator->ReleaseIdle();
  }
  cudaStreamSynchronize(stream);
}

}  // namespace

void CheckThreads() {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    sim::Options options;
    options.seed = seed;
    CheckClean("threads", options, [](Run* run) {
      memo::CudaAllocator allocator(0, kSmallChunkBytes);
      const cudaStream_t shared = sim::Machine::Get().NewStream(0);
      std::vector<std::thread> threads;
      for (int i = 0; i < kThreads; ++i) {
        threads.emplace_back([&, i] { GoRounds(&allocator, i, shared, &run->same_bits); });
      }
      for (std::thread& thread : threads) thread.join();
      cudaStreamSynchronize(shared);
      EXPECT(allocator.Counters().allocated_bytes == 0, allocator.Counters().allocated_bytes);
    });
  }
}
