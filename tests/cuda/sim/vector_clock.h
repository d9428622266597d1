// Who knows what: the order that waits and events establish, and nothing else does.
#ifndef MEMO_TESTS_CUDA_SIM_VECTOR_CLOCK_H_
#define MEMO_TESTS_CUDA_SIM_VECTOR_CLOCK_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sim {

// The host (all its threads together) is actor 0; every stream is one more.
using Actor = size_t;
constexpr Actor kHost = 0;

// The `time`-th thing that `actor` did.
struct Epoch {
  Actor actor = kHost;
  uint64_t time = 0;
};

// For every actor, how much of what it did is known to have happened.
class VectorClock {
 public:
  bool Covers(Epoch epoch) const {
    return epoch.time == 0 || (epoch.actor < times_.size() && times_[epoch.actor] >= epoch.time);
  }
  void Join(const VectorClock& other) {
    times_.resize(std::max(times_.size(), other.times_.size()));
    for (size_t i = 0; i < other.times_.size(); ++i) {
      times_[i] = std::max(times_[i], other.times_[i]);
    }
  }
  // One more thing done by `actor`, whose clock this is.
  Epoch Tick(Actor actor) {
    if (times_.size() <= actor) times_.resize(actor + 1);
    return Epoch{actor, ++times_[actor]};
  }

 private:
  std::vector<uint64_t> times_;
};

}  // namespace sim

#endif  // MEMO_TESTS_CUDA_SIM_VECTOR_CLOCK_H_
