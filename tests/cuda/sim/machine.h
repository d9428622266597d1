// A simulated machine with CUDA devices, behind the functions of runtime.cc.
//
// Streams are threads that do their work late and in pieces. Beside the execution the machine keeps
// for every byte the order that events and waits establish (vector clocks), so that a missing wait
// is a violation even in a run in which it does no harm. Tests look at `Finish()`.
//
//   sim::Machine& machine = sim::Machine::Start({.seed = 7});
//   ... code under test ...
//   EXPECT(machine.Finish().empty());
#ifndef MEMO_TESTS_CUDA_SIM_MACHINE_H_
#define MEMO_TESTS_CUDA_SIM_MACHINE_H_

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "sim/access_history.h"
#include "sim/memory_map.h"
#include "sim/violation.h"
#include "sim/worker.h"

namespace sim {

using Lock = std::unique_lock<std::mutex>;

struct Options {
  uint64_t seed = 0;
  int num_devices = 1;
  size_t device_bytes = size_t{1} << 30;
  size_t pinned_bytes = size_t{1} << 30;
  size_t max_pitch_bytes = (size_t{1} << 31) - 1;
};

// Rows of a copy; one row is a plain copy.
struct Copy {
  void* target;
  const void* source;
  size_t rows;
  size_t row_bytes;
  size_t target_pitch_bytes;
  size_t source_pitch_bytes;
  bool to_host;
};

// Work of a kernel on a stream: `run` happens between its reads and writes of exactly these bytes.
struct Kernel {
  std::string what;
  std::vector<Range> reads;
  std::vector<Range> writes;
  std::function<void()> run;
};

struct EventState {
  int device = 0;
  bool timed = false;
  bool recorded = false;
  double recorded_at_s = 0;  // when the host asked for it
  Ticket ticket;
  VectorClock clock;
};

class Machine {
 public:
  // The machine of this process anew; what the one before had is gone.
  static Machine& Start(const Options& options);
  static Machine& Get();
  ~Machine();

  // For tests. A stream of the test's own, non-blocking; a device's default stream is null.
  cudaStream_t NewStream(int device);
  // A stream that is the calling thread, as kernels of the CPU are: it has no work of its own, and
  // waiting for an event blocks the caller.
  cudaStream_t NewHostStream(int device);
  // A kernel on a stream. The calling thread's current device must be the stream's.
  void Launch(cudaStream_t stream, Kernel kernel);
  // The host itself touches bytes now.
  void HostRead(Range range) { TouchOnHost(range, false); }
  void HostWrite(Range range) { TouchOnHost(range, true); }
  // Call number `call` from now on, 1 for the next, fails with `code` and does nothing.
  void FailAt(uint64_t call, cudaError_t code);
  // The name of the call that FailAt let fail, or empty.
  std::string FailedCall();
  // Calls so far that can fail.
  uint64_t NumCalls() const;
  // Calls of cudaHostRegister that pinned something.
  uint64_t NumPins();
  // Events that are not destroyed.
  size_t NumEvents();
  // Does all work, looks for leaks, gives everything found. The test's own streams are no leak.
  std::vector<Violation> Finish();

  // For runtime.cc: the bodies of the runtime's functions, called within `Call`. Those that may
  // block let go of its lock meanwhile.
  cudaError_t StreamCreate(cudaStream_t* stream, unsigned int flags);
  cudaError_t StreamDestroy(cudaStream_t stream);
  cudaError_t StreamSynchronize(cudaStream_t stream, Lock& lock);
  cudaError_t StreamWait(cudaStream_t stream, cudaEvent_t event, Lock& lock);
  cudaError_t EventCreate(cudaEvent_t* event, unsigned int flags);
  cudaError_t EventDestroy(cudaEvent_t event);
  cudaError_t EventRecord(cudaEvent_t event, cudaStream_t stream);
  cudaError_t EventQuery(cudaEvent_t event);
  cudaError_t EventElapsed(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);
  cudaError_t EventSynchronize(cudaEvent_t event, Lock& lock);
  cudaError_t Malloc(void** data, size_t bytes);
  cudaError_t Free(void* data, Lock& lock);
  cudaError_t HostRegister(void* data, size_t bytes);
  cudaError_t HostUnregister(void* data, Lock& lock);
  cudaError_t StartCopy(const Copy& copy, cudaStream_t stream);

  // Counts a call, lets planned failures happen, runs `body` under the lock, keeps the last error.
  cudaError_t Call(const char* name, const std::function<cudaError_t(Lock&)>& body);

  const Options& options() const { return options_; }
  MemoryMap& memory() { return memory_; }
  void Report(Kind kind, std::string text);

 private:
  explicit Machine(const Options& options);

  Worker* Find(cudaStream_t stream, const char* user);
  EventState* Find(cudaEvent_t event, const char* user);
  Worker* MakeWorker(int device);
  void TouchOnHost(Range range, bool writes);
  void Touch(Range range, const Access& access, const VectorClock& clock);
  void CheckDeviceSide(Range range, int device, const char* what);
  void CheckCurrent(int device, const char* what);
  Pieces Cut(const Copy& copy, Worker* worker);
  void DrainAll(Lock& lock);
  void ReleaseOnHost(Range range, const char* what, Lock& lock);

  const Options options_;
  Pulse pulse_;
  MemoryMap memory_;
  AccessHistory history_;
  std::mt19937_64 random_;
  VectorClock host_clock_;
  // A forked child reads it, and a thread that it lacks may have held the mutex at the fork.
  std::atomic<uint64_t> calls_{0};
  uint64_t pins_ = 0;
  uint64_t fail_at_ = 0;
  cudaError_t failure_ = cudaSuccess;
  std::string failed_call_;
  std::vector<Violation> violations_;
  std::map<cudaStream_t, Worker*> streams_;
  std::set<cudaStream_t> host_streams_;
  size_t num_test_streams_ = 0;
  std::map<int, Worker*> default_streams_;
  std::map<cudaEvent_t, EventState> events_;
  uintptr_t next_handle_ = 0x1000;
  std::vector<std::unique_ptr<Worker>> workers_;
};

// The calling thread's current device and last error, as CUDA keeps them.
int& CurrentDevice();
cudaError_t& LastError();

}  // namespace sim

#endif  // MEMO_TESTS_CUDA_SIM_MACHINE_H_
