// What device memory was asked, in order.
#ifndef MEMO_MEMORY_RECORDING_H_
#define MEMO_MEMORY_RECORDING_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace memo {

struct MemoryEvent {
  enum class Kind : uint32_t { kAlloc = 0, kFree = 1, kMark = 2 };

  uint32_t kind;    // a Kind
  uint32_t source;  // 0 is the source that recorded first, 1 the next, ...
  uint64_t offset;  // of the allocation; of a mark: its value
  uint64_t bytes;   // after rounding to the alignment; of a mark: 0
};

// Events while it is on. Whoever owns it holds a lock around every call.
class Recording {
 public:
  // Forgets what there is and starts anew.
  void Start() {
    events_.emplace();
    sources_.clear();
  }
  bool on() const { return events_.has_value(); }

  // source: identity of whose event it is: of a thread on the CPU, of a stream on a GPU.
  void Add(MemoryEvent::Kind kind, uint64_t offset, uint64_t bytes, uint64_t source) {
    if (!on()) return;
    auto place = std::find(sources_.begin(), sources_.end(), source);
    if (place == sources_.end()) place = sources_.insert(place, source);
    const auto number = static_cast<uint32_t>(place - sources_.begin());
    events_->push_back(MemoryEvent{static_cast<uint32_t>(kind), number, offset, bytes});
  }

  // Ends recording; empty if it was off.
  std::vector<MemoryEvent> Stop() {
    return std::exchange(events_, std::nullopt).value_or(std::vector<MemoryEvent>());
  }

 private:
  std::optional<std::vector<MemoryEvent>> events_;
  std::vector<uint64_t> sources_;  // identities, in the order of their first event
};

}  // namespace memo

#endif  // MEMO_MEMORY_RECORDING_H_
