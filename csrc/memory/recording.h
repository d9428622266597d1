// What device memory was asked, in order.
#ifndef MEMO_MEMORY_RECORDING_H_
#define MEMO_MEMORY_RECORDING_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace memo {

enum class MemoryEventKind : uint32_t { kAlloc = 0, kFree = 1, kMark = 2 };

struct MemoryEvent {
  uint32_t kind;    // a MemoryEventKind
  uint32_t source;  // 0 is the source that recorded first, 1 the next, ...
  uint64_t offset;  // of the allocation; of a mark: its value
  uint64_t bytes;   // after rounding to the alignment; of a mark: 0
};

// Events while it is on. Whoever owns it holds a lock around every call.
class Recording {
 public:
  // Forgets what there is and starts anew.
  void Start();
  bool on() const { return events_.has_value(); }

  // source: identity of whose event it is: of a thread on the CPU, of a stream on a GPU.
  void Add(MemoryEventKind kind, uint64_t offset, uint64_t bytes, uint64_t source);

  // Ends recording; empty if it was off.
  std::vector<MemoryEvent> Stop();

 private:
  std::optional<std::vector<MemoryEvent>> events_;
  std::vector<uint64_t> sources_;  // identities, in the order of their first event
};

}  // namespace memo

#endif  // MEMO_MEMORY_RECORDING_H_
