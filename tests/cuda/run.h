// One run of a program on a fresh simulated machine, and what was found.
#ifndef MEMO_TESTS_CUDA_RUN_H_
#define MEMO_TESTS_CUDA_RUN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "step.h"

struct Run {
  std::vector<sim::Violation> violations;
  bool same_bits = true;    // every device's gradient is what it should be
  std::string refused;      // the message of the exception that ended it, or empty
  int num_fault_calls = 0;  // calls of the fault's sort on the first device
  uint64_t num_calls = 0;   // calls of the runtime

  bool Clean() const { return violations.empty() && same_bits && refused.empty(); }
  std::string Text() const;
};

// Whether all that a failed call left behind is what it was to give back: an object, or the device
// that was current.
bool OnlyLeftovers(const Run& run);

struct Program {
  uint64_t seed = 0;
  int num_devices = 1;
  StepShape shape;
  Bug bug = Bug::kNone;
  Fault fault;
};

// Two steps on every device of one process, block by block in turn.
Run RunSteps(const Program& program);

// `program` on a machine, leaks included. It must have destroyed its devices when it returns.
template <typename Program>
Run RunOn(const sim::Options& options, Program program) {
  sim::Machine& machine = sim::Machine::Start(options);
  Run run;
  try {
    program(&run);
  } catch (const memo::Error& error) {
    run.refused = error.what();
  }
  run.violations = machine.Finish();
  run.num_calls = machine.NumCalls();
  return run;
}

// `program` on two devices, with call number `call` of the runtime failing (0: none); `failed` is
// set to that call's name.
template <typename Program>
Run RunWithFailure(uint64_t call, Program program, std::string* failed) {
  sim::Options options;
  options.num_devices = 2;
  const Run run = RunOn(options, [&](Run*) {
    sim::Machine::Get().FailAt(call, cudaErrorLaunchFailure);
    program();
  });
  *failed = sim::Machine::Get().FailedCall();
  return run;
}

#endif  // MEMO_TESTS_CUDA_RUN_H_
