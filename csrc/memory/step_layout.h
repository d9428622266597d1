// The layout of one training step: every request in order, and the address planned for each.
#ifndef MEMO_MEMORY_STEP_LAYOUT_H_
#define MEMO_MEMORY_STEP_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace memo {

// Immutable. Requests are numbered in the order in which they are asked. Marks divide them: each
// says what the caller told the arena (Arena::Mark) before the requests that follow it.
//
// Of two requests that share bytes the later one waits for the earlier: its address may be handed
// out only when the earlier one is over. StepLayout knows who waits for whom directly; what is
// under several layers follows from them.
class StepLayout {
 public:
  using Number = uint32_t;
  static constexpr uint64_t kOutside = UINT64_MAX;

  struct Request {
    uint64_t bytes;   // a multiple of the alignment
    uint64_t offset;  // from the start of the planned range; kOutside: it is not in it
  };
  struct Mark {
    uint64_t value;
    uint64_t first;  // number of the first request after it
  };
  struct Range {
    const Number* first;
    const Number* last;
    const Number* begin() const { return first; }
    const Number* end() const { return last; }
  };

  // Requests of fewer than `smallest_bytes` are no part of the step. Throws InvalidArgument for
  // marks out of order, bytes or offsets that are not multiples of `alignment`, or 2^32 requests.
  StepLayout(std::vector<Request> requests, std::vector<Mark> marks, size_t smallest_bytes,
             size_t alignment);

  Number size() const { return static_cast<Number>(requests_.size()); }
  const Request& request(Number k) const { return requests_[k]; }
  const std::vector<Mark>& marks() const { return marks_; }
  size_t smallest_bytes() const { return smallest_bytes_; }
  size_t alignment() const { return alignment_; }
  // End of the highest planned request.
  size_t peak_bytes() const { return peak_bytes_; }

  // How many requests each one waits for.
  const std::vector<uint32_t>& waits() const { return waits_; }
  // Who waits for `k`.
  Range waiting_for(Number k) const {
    return {waiting_.data() + start_[k], waiting_.data() + start_[k + 1]};
  }

  // Requests that begin at one offset share a slot: at most one of them is alive at a time.
  uint32_t num_slots() const { return num_slots_; }
  uint32_t slot(Number k) const { return slots_[k]; }
  // The slot that begins at `offset`, or num_slots().
  uint32_t FindSlot(uint64_t offset) const;

 private:
  struct Entry {
    uint64_t offset = kOutside;
    uint32_t slot = 0;
  };

  void Check() const;
  void FindWaits();
  void NumberSlots();
  size_t Bucket(uint64_t offset) const;

  std::vector<Request> requests_;
  std::vector<Mark> marks_;
  size_t smallest_bytes_;
  size_t alignment_;
  size_t peak_bytes_ = 0;
  std::vector<uint32_t> waits_;
  std::vector<size_t> start_;
  std::vector<Number> waiting_;
  std::vector<uint32_t> slots_;
  uint32_t num_slots_ = 0;
  std::vector<Entry> table_;  // open addressing, at most half full
  int shift_ = 0;
};

}  // namespace memo

#endif  // MEMO_MEMORY_STEP_LAYOUT_H_
