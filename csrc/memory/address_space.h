// Addresses without memory: which parts of a range are in use, and where the next request goes.
#ifndef MEMO_MEMORY_ADDRESS_SPACE_H_
#define MEMO_MEMORY_ADDRESS_SPACE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "memory/replay.h"

namespace memo {

// The offsets [0, limit), for whoever has memory behind them and holds a lock around every call.
//
// While a step with a layout runs, its requests get their planned addresses (see Replay) in a range
// of their own. Everything else goes by size: large requests are served from the top downward and
// small ones from the bottom upward, each from the first hole that holds it.
class AddressSpace {
 public:
  static constexpr size_t kAlignment = 64;

  // What the range holds. Bytes are after rounding to the alignment.
  struct Counters {
    size_t used_bytes = 0;        // in live allocations now
    size_t peak_bytes = 0;        // largest used_bytes since ResetPeak
    size_t high_water_bytes = 0;  // most bytes outside the largest hole since ResetPeak
    size_t live_allocations = 0;
    uint64_t allocations = 0;  // ever made
    size_t planned_bytes = 0;  // the range that a step's layout occupies now
  };

  // `limit_bytes` is a multiple of the alignment, as are the bytes of all requests.
  explicit AddressSpace(size_t limit_bytes);

  // The planned address of the next request, else one by size. If no hole holds it, a step under
  // way is given up first: its range is not worth a refusal. Nothing if there is still no room.
  std::optional<size_t> Take(size_t bytes) {
    const std::optional<size_t> planned = TakePlanned(bytes);
    return planned ? planned : TakeBySize(bytes);
  }
  // Only a planned address, which counts as taken; nothing if the request has none.
  std::optional<size_t> TakePlanned(size_t bytes) {
    if (!replay_) return std::nullopt;
    const std::optional<size_t> planned = replay_->Alloc(bytes);
    if (planned) CountTaken(bytes);
    return planned;
  }
  // Where TakePlanned would look for it, whether what lay there is over or not.
  std::optional<size_t> NextPlanned(size_t bytes) const;

  // Ends the allocation that starts at `offset`; its bytes, or 0 if none does.
  size_t Free(size_t offset) {
    const size_t planned = replay_ ? replay_->Free(offset) : 0;
    const size_t bytes = planned > 0 ? planned : FreeBySize(offset);
    if (bytes == 0) return 0;
    counters_.used_bytes -= bytes;
    --counters_.live_allocations;
    return bytes;
  }
  // The bytes of the allocation that starts at `offset`; 0 if none does.
  size_t LiveBytes(size_t offset) const;
  // Whether [offset, offset + bytes) lies within one live allocation.
  bool IsLive(size_t offset, size_t bytes) const;

  // Moves the end of the range; it must not be below EndOfLive().
  void SetLimit(size_t limit_bytes);
  // The smallest large request from now on; nullopt: all are small.
  void SetLargeBytes(std::optional<size_t> bytes) { large_bytes_ = bytes; }

  size_t limit_bytes() const { return limit_bytes_; }
  size_t LargestHole() const { return hole_sizes_.empty() ? 0 : *hole_sizes_.rbegin(); }
  // End of the highest live allocation or planned range.
  size_t EndOfLive() const;
  const Counters& counters() const { return counters_; }
  void ResetPeak();

  // Serves the next step by `layout`, in a range taken for it, until EndStep. False, and nothing is
  // planned, if no hole is large enough. A step under way ends.
  bool BeginStep(std::shared_ptr<const StepLayout> layout, Replay::ServedThreads served);
  // Tells the step under way which place it has come to.
  void Mark(uint64_t value);
  // Ends the step under way; what it did, or nothing if none has begun. Its range is given back;
  // what still lives in it stays where it is.
  std::optional<ReplayCounts> EndStep();
  // Ends it in want of room, if one is under way: EndStep will say so.
  void GiveUpStep();
  bool in_step() const { return replay_.has_value(); }

 private:
  using Ranges = std::map<size_t, size_t>;  // offset -> bytes

  void CountTaken(size_t bytes) {
    counters_.used_bytes += bytes;
    if (counters_.used_bytes > counters_.peak_bytes) counters_.peak_bytes = counters_.used_bytes;
    ++counters_.live_allocations;
    ++counters_.allocations;
  }
  std::optional<size_t> TakeBySize(size_t bytes);
  size_t FreeBySize(size_t offset);
  size_t TakeHighest(size_t bytes);
  size_t TakeLowest(size_t bytes);
  size_t TakeFromHole(Ranges::iterator hole, size_t bytes, bool at_end);
  void RaiseHighWater();
  void DissolveRange();
  void AddHole(size_t offset, size_t bytes);
  void EraseHole(Ranges::iterator hole);

  size_t limit_bytes_;
  Ranges live_;
  Ranges holes_;                      // all else below the limit; no two touch
  std::multiset<size_t> hole_sizes_;  // of holes_
  std::optional<size_t> large_bytes_;
  std::optional<Replay> replay_;      // its range is in no hole and not in live_
  std::optional<ReplayCounts> done_;  // of a step whose range was dissolved
  Counters counters_;
};

}  // namespace memo

#endif  // MEMO_MEMORY_ADDRESS_SPACE_H_
