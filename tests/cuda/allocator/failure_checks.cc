#include <sys/wait.h>
#include <unistd.h>

#include "allocator/checks.h"

namespace {

// Everything that calls the runtime, on device 1.
void UseEverything() {
  memo::CudaAllocator allocator(1, kSmallChunkBytes);
  allocator.SetCap(6 * kMiB);
  const cudaStream_t copies = sim::Machine::Get().NewStream(1);
  const auto layout = std::make_shared<memo::StepLayout>(
      std::vector<memo::StepLayout::Request>{{kMiB, 0}, {kMiB, 0}},
      std::vector<memo::StepLayout::Mark>{{1, 0}}, 512, 512);
  allocator.BeginStep(layout, nullptr);
  allocator.Mark(1);
  for (int i = 0; i < 2; ++i) {
    void* const data = allocator.Alloc(kMiB, nullptr);
    allocator.RecordStream(data, copies);
    allocator.Free(data, nullptr);
  }
  allocator.EndStep();
  void* const large = allocator.Alloc(3 * kMiB, nullptr);
  allocator.RecordStream(large, copies);
  allocator.Free(large, nullptr);
  allocator.Free(allocator.Alloc(6 * kMiB, nullptr), nullptr);
  RefusalOf<memo::DeviceMemoryExceeded>([&] { allocator.Alloc(7 * kMiB, nullptr); });
  allocator.BeginStep(layout, copies);
  allocator.ReleaseIdle();
  allocator.Alloc(1, nullptr);
}

}  // namespace

void CheckFailures() {
  std::string failed;
  const Run clean = RunWithFailure(0, UseEverything, &failed);
  EXPECT(clean.Clean(), clean.Text());
  uint64_t num_thrown = 0;
  for (uint64_t call = 1; call <= clean.num_calls; ++call) {
    const Run run = RunWithFailure(call, UseEverything, &failed);
    if (run.refused.empty()) continue;  // in a destructor, or it was not called this time
    ++num_thrown;
    EXPECT(Contains(run.refused, failed + " failed on CUDA device 1"), run.refused);
    EXPECT(OnlyLeftovers(run), failed + ": " + run.Text());
  }
  EXPECT(num_thrown * 2 > clean.num_calls, num_thrown);

  CheckClean("fork", sim::Options(), [](Run*) {
    memo::CudaAllocator allocator(0, kSmallChunkBytes);
    void* const data = allocator.Alloc(1, nullptr);
    void* const shared = allocator.Alloc(1, nullptr);
    allocator.RecordStream(shared, sim::Machine::Get().NewStream(0));
    const pid_t child = fork();
    if (child == 0) {
      const auto refused = [](auto body) { return !RefusalOf<memo::ForkedProcess>(body).empty(); };
      const uint64_t before = sim::Machine::Get().NumCalls();
      const bool right = refused([&] { allocator.Alloc(kMiB, nullptr); }) &&
                         refused([&] { allocator.Free(shared, nullptr); }) &&
                         refused([&] { allocator.ReleaseIdle(); });
      allocator.Free(data, nullptr);
      allocator.~CudaAllocator();
      _exit(right && sim::Machine::Get().NumCalls() == before ? 0 : 1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    EXPECT(status == 0, status);
    for (void* each : {data, shared}) allocator.Free(each, nullptr);
  });
}
