#include <iostream>

#include "checks.h"

namespace {

// In these programs memory is used again at once, so that every wait matters.
StepShape TightShape(uint64_t seed) {
  StepShape shape = ShapeFrom(seed);
  shape.fetch_ahead = false;
  shape.change_stream = false;
  return shape;
}

void SpoilEachCall(uint64_t first, uint64_t count, Fault::Sort sort, const char* name) {
  int num_faults = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    Program program{seed, 1, TightShape(seed), Bug::kNone, Fault{sort, -1}};
    const int num_calls = RunSteps(program).num_fault_calls;
    EXPECT(num_calls > 0, "seed " + std::to_string(seed));
    for (int& index = ++program.fault.index; index < num_calls; ++index) {
      EXPECT(!RunSteps(program).Clean(),
             std::string(name) + " " + std::to_string(index) + ", seed " + std::to_string(seed));
    }
    num_faults += num_calls;
  }
  std::cout << num_faults << " " << name << ", each caught" << std::endl;
}

}  // namespace

void CheckCleanSteps(uint64_t first, uint64_t count) {
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const int num_devices = 1 + static_cast<int>(seed % 2);
    const Run run = RunSteps(Program{seed, num_devices, ShapeFrom(seed), Bug::kNone, Fault()});
    EXPECT(run.Clean(), "seed " + std::to_string(seed) + ": " + run.Text());
  }
  std::cout << count << " seeds clean" << std::endl;
}

void CheckBugs(uint64_t first, uint64_t count) {
  for (int bug = 1; bug < kNumBugs; ++bug) {
    for (uint64_t seed = first; seed < first + count; ++seed) {
      const Run run = RunSteps(Program{seed, 1, ShapeFrom(seed), static_cast<Bug>(bug), Fault()});
      EXPECT(!run.Clean(), "bug " + std::to_string(bug) + ", seed " + std::to_string(seed));
    }
    std::cout << "bug " << bug << " caught under " << count << " seeds" << std::endl;
  }
}

void CheckFaults(uint64_t first, uint64_t count) {
  SpoilEachCall(first, count, Fault::Sort::kDropWait, "waits dropped");
  SpoilEachCall(first, count, Fault::Sort::kDropRecord, "records dropped");
  SpoilEachCall(first, count, Fault::Sort::kLateCopy, "copies after their event");
}
