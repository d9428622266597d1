// What an arena was asked, in order.
#ifndef MEMO_DEVICE_RECORDING_H_
#define MEMO_DEVICE_RECORDING_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace memo {

enum class ArenaEventKind : uint32_t { kAlloc = 0, kFree = 1, kMark = 2 };

struct ArenaEvent {
  uint32_t kind;    // an ArenaEventKind
  uint32_t thread;  // 0 is the thread that recorded first, 1 the next, ...
  uint64_t offset;  // of the allocation; of a mark: its value
  uint64_t bytes;   // after rounding to the alignment; of a mark: 0
};

// Events while it is on. The arena calls it under its lock.
class Recording {
 public:
  // Forgets what there is and starts anew.
  void Start() { events_.emplace(); }
  bool on() const { return events_.has_value(); }

  void Add(ArenaEventKind kind, uint64_t offset, uint64_t bytes);

  // Ends recording; empty if it was off.
  std::vector<ArenaEvent> Stop();

 private:
  uint32_t Thread();

  std::optional<std::vector<ArenaEvent>> events_;
  std::vector<uint64_t> threads_;  // identities, in the order of their first event
};

}  // namespace memo

#endif  // MEMO_DEVICE_RECORDING_H_
