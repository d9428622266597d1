#include <random>
#include <vector>

#include "allocator/checks.h"

namespace {

using memo::CudaAllocator;

sim::Options WithDriver(size_t device_bytes = size_t{1} << 30) {
  sim::Options options;
  options.has_driver = true;
  options.device_bytes = device_bytes;
  return options;
}

// Requests that grow: each would find no room in the chunks of those before it.
void CheckFirstStep() {
  CheckClean("first step", WithDriver(), [](Run*) {
    CudaAllocator allocator(0, kSmallChunkBytes);
    allocator.SetCap(12 * kMiB);
    for (size_t bytes = kMiB; bytes <= 6 * kMiB; bytes += kMiB) {
      void* const first = allocator.Alloc(bytes, nullptr);
      void* const second = allocator.Alloc(bytes, nullptr);
      allocator.Free(first, nullptr);
      allocator.Free(second, nullptr);
    }
    const auto counters = allocator.Counters();
    EXPECT(counters.refusals == 0 && counters.retries == 0, counters.retries);
    EXPECT(counters.reserved_peak_bytes == 12 * kMiB, counters.reserved_peak_bytes);
  });
}

// What a step leaves at the bottom keeps no more than its own pieces from the planned range.
void CheckLeftBehind() {
  CheckClean("left behind", WithDriver(8 * kMiB), [](Run*) {
    CudaAllocator allocator(0, kSmallChunkBytes);
    void* const gradient = allocator.Alloc(1000, nullptr);
    allocator.Free(allocator.Alloc(7 * kMiB, nullptr), nullptr);
    const auto layout =
        std::make_shared<memo::StepLayout>(std::vector<memo::StepLayout::Request>{{6 * kMiB, 0}},
                                           std::vector<memo::StepLayout::Mark>{{1, 0}}, 512, 512);
    EXPECT(allocator.BeginStep(layout, nullptr), "no room for the planned range");
    EXPECT(allocator.Counters().reserved_bytes == 6 * kMiB + kSmallChunkBytes, "reserved");
    allocator.EndStep();
    allocator.Free(gradient, nullptr);
    allocator.ReleaseIdle();
    EXPECT(allocator.Counters().reserved_bytes == 0, allocator.Counters().reserved_bytes);
  });
}

void CheckRefusal() {
  CheckClean("refusal", WithDriver(4 * kMiB), [](Run*) {
    CudaAllocator allocator(0, kSmallChunkBytes);
    void* const data = allocator.Alloc(3 * kMiB, nullptr);
    const auto too_much = [&] { allocator.Alloc(kMiB + 1, nullptr); };
    EXPECT(!RefusalOf<memo::DeviceMemoryExceeded>(too_much).empty(), "more than there is");
    allocator.Free(allocator.Alloc(kMiB, nullptr), nullptr);
    allocator.Free(data, nullptr);
  });
}

// Blocks of two streams, used by each other's, under a cap that makes ranges shrink and grow.
void CheckTraffic(uint64_t seed) {
  sim::Options options = WithDriver();
  options.seed = seed;
  CheckClean("ranges under traffic", options, [seed](Run* run) {
    std::mt19937_64 random(seed);
    CudaAllocator allocator(0, kSmallChunkBytes);
    allocator.SetCap(3 * kMiB);
    const cudaStream_t streams[] = {sim::Machine::Get().NewStream(0),
                                    sim::Machine::Get().NewStream(0)};
    for (int round = 0; round < 60; ++round) {
      const cudaStream_t own = streams[random() % 2];
      const cudaStream_t other = own == streams[0] ? streams[1] : streams[0];
      const size_t bytes = 1 + random() % (2 * kMiB);
      const char value = static_cast<char>(round);
      char* const data = static_cast<char*>(allocator.Alloc(bytes, own));
      Fill(own, data, bytes, value);
      Order(own, other);
      Look(other, data, bytes, value, &run->same_bits);
      allocator.RecordStream(data, other);
      allocator.Free(data, own);
    }
    EXPECT(allocator.Counters().device_frees > 0, "no range ever shrank");
    for (const cudaStream_t stream : streams) cudaStreamSynchronize(stream);
  });
}

void UseRanges() {
  CudaAllocator allocator(1, kSmallChunkBytes);
  allocator.SetCap(4 * kMiB);
  void* const kept = allocator.Alloc(1000, nullptr);
  allocator.Free(allocator.Alloc(3 * kMiB, nullptr), nullptr);
  allocator.ReleaseIdle();
  allocator.Free(allocator.Alloc(2 * kMiB, sim::Machine::Get().NewStream(1)), nullptr);
  allocator.Free(kept, nullptr);
  allocator.ReleaseIdle();
  allocator.Alloc(1, nullptr);
}

// Every call fails once: an exception that names it, or the next use says so.
void CheckFailingCalls() {
  std::string failed;
  sim::Options options = WithDriver();
  options.num_devices = 2;
  const auto run_with = [&](uint64_t call) {
    return RunOn(options, [&](Run*) {
      sim::Machine::Get().FailAt(call, cudaErrorLaunchFailure);
      UseRanges();
    });
  };
  const Run clean = run_with(0);
  EXPECT(clean.Clean(), clean.Text());
  uint64_t num_thrown = 0;
  for (uint64_t call = 1; call <= clean.num_calls; ++call) {
    const Run run = run_with(call);
    failed = sim::Machine::Get().FailedCall();
    if (run.refused.empty()) continue;
    ++num_thrown;
    EXPECT(Contains(run.refused, failed + " failed on CUDA device 1"), run.refused);
    EXPECT(OnlyLeftovers(run), failed + ": " + run.Text());
  }
  EXPECT(num_thrown * 2 > clean.num_calls, num_thrown);
}

}  // namespace

void CheckRanges() {
  CheckFirstStep();
  CheckLeftBehind();
  CheckRefusal();
  for (uint64_t seed = 0; seed < 20; ++seed) CheckTraffic(seed);
  CheckFailingCalls();
}
