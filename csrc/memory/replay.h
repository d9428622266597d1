// One step served by its layout: request k gets address k, as long as the step goes as planned.
#ifndef MEMO_MEMORY_REPLAY_H_
#define MEMO_MEMORY_REPLAY_H_

#include <pthread.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "memory/step_layout.h"

namespace memo {

struct ReplayCounts {
  // What a step did that its layout did not foresee. Places are values of marks.
  struct Departure {
    uint64_t bytes = 0;           // asked
    uint64_t expected_bytes = 0;  // next in the layout; 0: nothing more at this place
    uint64_t place = 0;           // the last mark
    bool in_use = false;          // as expected, but what had the address before still lives
    std::string op;               // operation that asked; empty if it cannot be told
  };

  uint64_t planned = 0;   // requests at their planned address
  uint64_t outside = 0;   // as expected, but of those that live on after the step
  uint64_t small = 0;     // below the smallest size that is planned
  uint64_t departed = 0;  // not as expected: served outside the planned range
  uint64_t missing = 0;   // expected and never asked
  bool given_up = false;  // the planned range was dissolved in mid-step for want of room
  std::optional<Departure> first;
};

// Decides addresses; whoever owns it holds a lock around every call.
//
// What does not match the layout is never an error: it is left to the owner. An address is handed
// out only if all that lay there before is over, so a step that goes another way stays right.
class Replay {
 public:
  // Whose requests are those of the step. On the CPU other threads' (oneDNN's workers') come in any
  // order. On a GPU the stream says whose a request is, and autograd runs backward on its own
  // thread.
  enum class ServedThreads { kCalling, kAll };

  // base: where the planned range starts.
  Replay(std::shared_ptr<const StepLayout> layout, size_t base, ServedThreads served);

  // The planned address of the next request, `bytes` being rounded up; nothing if it has none.
  std::optional<size_t> Alloc(size_t bytes);
  // Where Alloc would put a request of `bytes` bytes, whether what lay there is over or not.
  std::optional<size_t> Next(size_t bytes) const;
  // The bytes of the planned request at `address`, which is over now; 0 if none lives there.
  size_t Free(size_t address);
  // The step has come to a place; requests that were expected before it are missing.
  void Mark(uint64_t value);
  // The step is over; requests that were still expected are missing.
  void End();

  // Planned requests that live now, as (address, bytes), by address.
  std::vector<std::pair<size_t, size_t>> Live() const;

  const ReplayCounts& counts() const { return counts_; }
  size_t base() const { return base_; }
  size_t end() const { return base_ + layout_->peak_bytes(); }
  bool Covers(size_t address) const { return address >= base_ && address < end(); }
  // The bytes of the live planned request that starts at `address`; 0 if none does.
  size_t LiveBytes(size_t address) const;
  // Whether [address, address + bytes) lies within one live planned request.
  bool IsLive(size_t address, size_t bytes) const;

 private:
  using Number = StepLayout::Number;
  static constexpr Number kNobody = UINT32_MAX;

  bool ServesCaller() const {
    return served_ == ServedThreads::kAll || pthread_equal(thread_, pthread_self());
  }
  bool Expects(size_t bytes) const {
    return !lost_ && next_ != segment_end_ && layout_->request(next_).bytes == bytes;
  }
  // Who lives at `address`, or kNobody.
  Number LiveAt(size_t address) const;
  bool Holds(Number k, size_t address, size_t bytes) const;
  std::optional<size_t> Depart(size_t bytes, bool in_use);
  void Skip(Number k);
  // `k` is over: those that wait for it come nearer.
  void Finish(Number k);

  const std::shared_ptr<const StepLayout> layout_;
  const size_t base_;
  const ServedThreads served_;
  const pthread_t thread_;
  std::vector<uint32_t> waits_;
  std::vector<char> skipped_;
  std::vector<Number> live_in_;  // per slot
  std::vector<Number> finished_;
  Number next_ = 0;
  Number segment_end_ = 0;
  size_t next_mark_ = 0;
  uint64_t place_ = 0;
  bool lost_ = false;
  ReplayCounts counts_;
};

}  // namespace memo

#endif  // MEMO_MEMORY_REPLAY_H_
