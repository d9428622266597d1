// Checks of the CUDA allocator on the simulated runtime. Each ends the program if it fails.
#ifndef MEMO_TESTS_CUDA_ALLOCATOR_CHECKS_H_
#define MEMO_TESTS_CUDA_ALLOCATOR_CHECKS_H_

#include <cstdint>
#include <cstring>
#include <string>

#include "check.h"
#include "cuda/cuda_allocator.h"
#include "run.h"

// Random blocks, kernels and copies on several streams, under seeds [first, first + count)
// (traffic_checks.cc): no violation and the right bytes;
void CheckTraffic(uint64_t first, uint64_t count);
// a use that the allocator is not told of is a violation under every seed.
void CheckTrafficBugs(uint64_t first, uint64_t count);

// Steps by a layout get its addresses, without a departure and without a violation; and if the
// streams do not wait for copies, there is one (planned_checks.cc).
void CheckPlannedSteps(uint64_t first, uint64_t count);
// What begins, ends, outgrows and gives up a planned range (step_checks.cc).
void CheckStepRanges();

// Chunks, refusals, the cap, counters and wrong arguments (growth_checks.cc).
void CheckGrowth();
// Ranges whose memory grows and shrinks, where the driver can do that (range_checks.cc).
void CheckRanges();
// Every runtime call fails once (failure_checks.cc).
void CheckFailures();
// Native threads on one allocator (thread_checks.cc).
void CheckThreads();
// The C functions, on two devices (entry_checks.cc).
void CheckEntry();

constexpr size_t kSmallChunkBytes = size_t{64} << 10;
constexpr size_t kMiB = size_t{1} << 20;

// A kernel that fills [data, data + bytes).
inline void Fill(cudaStream_t stream, char* data, size_t bytes, char value) {
  sim::Machine::Get().Launch(stream, sim::Kernel{"fill", {}, {sim::RangeOf(data, bytes)}, [=] {
                                                   std::memset(data, value, bytes);
                                                 }});
}

// A kernel that reads them, and says in `same` if they are anything else.
inline void Look(cudaStream_t stream, const char* data, size_t bytes, char value, bool* same) {
  sim::Machine::Get().Launch(stream, sim::Kernel{"look", {sim::RangeOf(data, bytes)}, {}, [=] {
                                                   for (size_t i = 0; i < bytes; ++i) {
                                                     if (data[i] != value) *same = false;
                                                   }
                                                 }});
}

// What `later` is given from now on comes after what `earlier` has been given.
inline void Order(cudaStream_t earlier, cudaStream_t later) {
  cudaEvent_t event = nullptr;
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  cudaEventRecord(event, earlier);
  cudaStreamWaitEvent(later, event, 0);
  cudaEventDestroy(event);
}

// The message of the error of type E that `body` raises, or empty.
template <typename E, typename Body>
std::string RefusalOf(Body body) {
  try {
    body();
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

template <typename Program>
void CheckClean(const char* what, const sim::Options& options, Program program) {
  const Run run = RunOn(options, [&](Run* result) { program(result); });
  EXPECT(run.Clean(), std::string(what) + ": " + run.Text());
}

#endif  // MEMO_TESTS_CUDA_ALLOCATOR_CHECKS_H_
