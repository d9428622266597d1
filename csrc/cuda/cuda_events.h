// Points in the work of CUDA streams, from a pool: an event is made once and recorded many times.
#ifndef MEMO_CUDA_CUDA_EVENTS_H_
#define MEMO_CUDA_CUDA_EVENTS_H_

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/cuda_calls.h"
#include "device.h"

namespace memo {

class CudaEventPool;

// Gives its CUDA event back to the pool when the last holder lets go, whether it is done or not:
// streams that were told to wait for it go on waiting for what it was when they were told.
class CudaEvent : public Event {
 public:
  explicit CudaEvent(CudaEventPool* pool);
  ~CudaEvent() override;
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  // Throws CudaError when earlier work of the device has failed.
  bool Done() const override;
  // Blocks the caller. Throws as Done does.
  void Wait() const;
  // Blocks what `stream` is given from now on. Needs a guard. Throws CudaError.
  void Block(cudaStream_t stream) const;
  // Seconds from `begin` to this event; both are done, and of a pool that times. Throws CudaError.
  double SecondsSince(const CudaEvent& begin) const;

 private:
  friend class CudaEventPool;

  CudaEventPool* const pool_;
  const cudaEvent_t event_;
  mutable std::atomic<bool> done_{false};  // once done, CUDA need not be asked again
};

using CudaEventRef = std::shared_ptr<const CudaEvent>;

// The events of one device. Any thread may call any method. Must outlive its events.
class CudaEventPool {
 public:
  // Whether events say when they were done. Those that do not are cheaper to wait for.
  enum class Timing : unsigned int { kOff = cudaEventDisableTiming, kOn = cudaEventDefault };

  explicit CudaEventPool(CudaCalls* calls, Timing timing = Timing::kOff)
      : calls_(calls), timing_(timing) {}
  ~CudaEventPool();
  CudaEventPool(const CudaEventPool&) = delete;
  CudaEventPool& operator=(const CudaEventPool&) = delete;

  // An event for everything given to `stream` so far. Needs a guard. Throws CudaError.
  CudaEventRef Record(cudaStream_t stream);

  // How many were ever made: the most that were held at once.
  size_t NumMade() const;

  CudaCalls* calls() const { return calls_; }

 private:
  friend class CudaEvent;

  cudaEvent_t Take();
  void GiveBack(cudaEvent_t event) noexcept;

  CudaCalls* const calls_;
  const Timing timing_;
  mutable std::mutex mutex_;
  size_t num_made_ = 0;
  std::vector<cudaEvent_t> free_;  // has room for all that were made
};

// Seconds that streams spend between pairs of events, added up once the device has come to both.
//
// The device stamps its events with the time, so nobody waits: what is not over yet is not counted.
// Any thread may call any method.
class CudaStopwatch {
 public:
  // An interval of one stream; both events are of a pool that times. Throws CudaError.
  void Add(CudaEventRef begin, CudaEventRef end);
  // Of the intervals since Reset that are known to be over. Throws CudaError when the device has
  // failed.
  double Seconds() const;
  // Waits for all intervals, which are over where their streams have been waited for: a query may
  // say so later.
  void Finish();
  // Forgets all intervals, also those under way.
  void Reset();

 private:
  static constexpr size_t kMostOpen = 16;  // from then on Add looks which ones are over

  void Settle() const;

  mutable std::mutex mutex_;
  mutable std::deque<std::pair<CudaEventRef, CudaEventRef>> open_;
  mutable double seconds_ = 0;
};

}  // namespace memo

#endif  // MEMO_CUDA_CUDA_EVENTS_H_
