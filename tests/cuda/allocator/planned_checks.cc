#include <thread>

#include "allocator/planned_steps.h"

namespace {

constexpr int kNumSteps = 3;

// Steps whose second half is another thread's, as backward is torch's.
Run RunPlanned(uint64_t seed, bool records, uint64_t* num_waits) {
  sim::Options options;
  options.seed = seed;
  return RunOn(options, [&](Run* run) {
    const cudaStream_t compute = sim::Machine::Get().NewStream(0);
    const cudaStream_t copies = sim::Machine::Get().NewStream(0);
    PlannedStep step(seed);
    memo::CudaAllocator allocator(0, kSmallChunkBytes);
    for (int number = 0; number < kNumSteps; ++number) {
      EXPECT(allocator.BeginStep(step.layout(), compute), "no room for a step");
      allocator.Mark(PlannedStep::kPlace);
      const size_t half = step.num_moves() / 2;
      step.Go(&allocator, compute, copies, {0, half}, records);
      std::thread backward(
          [&] { step.Go(&allocator, compute, copies, {half, step.num_moves()}, records); });
      backward.join();
      const memo::ReplayCounts counts = *allocator.EndStep();
      EXPECT(counts.planned == PlannedStep::kNumRequests, counts.planned);
      EXPECT(counts.departed == 0 && counts.missing == 0, counts.departed + counts.missing);
      EXPECT(step.AsPlanned(), "an address is not the planned one");
    }
    cudaStreamSynchronize(compute);
    cudaStreamSynchronize(copies);
    const memo::CudaAllocatorCounters counters = allocator.Counters();
    EXPECT(counters.device_mallocs == 1, counters.device_mallocs);
    EXPECT(counters.planned_requests == kNumSteps * PlannedStep::kNumRequests, "planned");
    EXPECT(counters.unplanned_requests == 0 && counters.allocated_bytes == 0, "unplanned");
    *num_waits += counters.planned_waits;
    run->same_bits = step.same();
  });
}

}  // namespace

void CheckPlannedSteps(uint64_t first, uint64_t count) {
  uint64_t num_waits = 0, num_caught = 0, unused = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const Run run = RunPlanned(seed, /*records=*/true, &num_waits);
    EXPECT(run.Clean(), "seed " + std::to_string(seed) + ": " + run.Text());
    num_caught += RunPlanned(seed, /*records=*/false, &unused).Clean() ? 0 : 1;
  }
  EXPECT(num_waits > count, num_waits);  // copies were late, and the stream waited for them
  EXPECT(num_caught == count, num_caught);
}
