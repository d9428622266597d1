// Checks of one device on the simulated runtime, by subject. Each ends the program if it fails.
#ifndef MEMO_TESTS_CUDA_CHECKS_H_
#define MEMO_TESTS_CUDA_CHECKS_H_

#include <cstdint>
#include <memory>
#include <string>

#include "check.h"
#include "copies/transfer.h"
#include "cuda/cuda_device.h"
#include "run.h"

constexpr size_t kBytes = 4096;  // of a typical range

// Whole steps, under seeds [first, first + count) (step_checks.cc):
// right programs have no violation and the right bits;
void CheckCleanSteps(uint64_t first, uint64_t count);
// every bug of step.h is caught each time;
void CheckBugs(uint64_t first, uint64_t count);
// so is every single wait, record and copy that is spoilt.
void CheckFaults(uint64_t first, uint64_t count);

// What the device promises (contract_checks.cc).
void CheckContract();
// That the order of transfers needs each of its waits, and both directions of a host range keep
// the order of the calls (order_checks.cc).
void CheckOrder();
// Every runtime call fails once (failure_checks.cc).
void CheckFailures();
// What a forked child may do: nothing, with a clear message (failure_checks.cc).
void CheckFork();
// Native threads on one device (thread_checks.cc).
void CheckThreads();
// That the simulated runtime notices each kind of violation (sim_checks.cc).
void CheckSimulation();

constexpr memo::ComputeStream kCompute = 0;  // the default stream

inline std::shared_ptr<memo::CudaDevice> NewDevice(int ordinal = 0) {
  return std::make_shared<memo::CudaDevice>(ordinal);
}

inline memo::CopySpec OneRow(void* target, const void* source, size_t bytes) {
  return memo::CopySpec{target, source, 1, bytes, bytes, bytes};
}

#endif  // MEMO_TESTS_CUDA_CHECKS_H_
