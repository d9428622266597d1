// Seconds that streams spend between pairs of points, added up once the device has come to both.
#ifndef MEMO_CUDA_CUDA_STOPWATCH_H_
#define MEMO_CUDA_CUDA_STOPWATCH_H_

#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "cuda/cuda_events.h"

namespace memo {

// The device stamps its events with the time, so nobody waits: what is not over yet is not counted.
// Any thread may call any method.
class CudaStopwatch {
 public:
  using EventRef = std::shared_ptr<const CudaEvent>;

  // An interval of one stream; both events are of a pool that times. Throws CudaError.
  void Add(EventRef begin, EventRef end);
  // Of the intervals since Reset that are over. Throws CudaError when the device has failed.
  double Seconds() const;
  // Forgets all intervals, also those under way.
  void Reset();

 private:
  static constexpr size_t kMostOpen = 16;  // from then on Add looks which ones are over

  void Settle() const;

  mutable std::mutex mutex_;
  mutable std::deque<std::pair<EventRef, EventRef>> open_;
  mutable double seconds_ = 0;
};

}  // namespace memo

#endif  // MEMO_CUDA_CUDA_STOPWATCH_H_
