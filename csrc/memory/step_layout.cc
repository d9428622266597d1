#include "memory/step_layout.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>

#include "base/check.h"

namespace memo {
namespace {

constexpr uint64_t kGoldenRatio =
    0x9E3779B97F4A7C15;  // 2^64 over the golden ratio: Fibonacci hashing

// Addresses and who had them last; no two ranges overlap.
class LastOwners {
 public:
  using Number = StepLayout::Number;

  // `owner` takes [begin, end); calls `see` with everyone who had a part of it.
  template <typename See>
  void Take(uint64_t begin, uint64_t end, Number owner, See see) {
    auto range = ranges_.upper_bound(begin);
    if (range != ranges_.begin() && std::prev(range)->second.end > begin) --range;
    while (range != ranges_.end() && range->first < end) {
      const auto [first, held] = *range;
      see(held.owner);
      range = ranges_.erase(range);
      if (first < begin) ranges_.emplace(first, Held{begin, held.owner});
      if (held.end > end) ranges_.emplace(end, Held{held.end, held.owner});
    }
    ranges_.emplace(begin, Held{end, owner});
  }

 private:
  struct Held {
    uint64_t end;
    Number owner;
  };
  std::map<uint64_t, Held> ranges_;
};

}  // namespace

StepLayout::StepLayout(std::vector<Request> requests, std::vector<Mark> marks,
                       size_t smallest_bytes, size_t alignment)
    : requests_(std::move(requests)),
      marks_(std::move(marks)),
      smallest_bytes_(smallest_bytes),
      alignment_(alignment) {
  Check();
  FindWaits();
  NumberSlots();
}

void StepLayout::Check() const {
  MEMO_REQUIRE(InvalidArgument, requests_.size() < UINT32_MAX)
      << "a step of " << requests_.size() << " requests; the most is " << UINT32_MAX - 1;
  for (size_t k = 0; k < requests_.size(); ++k) {
    const auto [bytes, offset] = requests_[k];
    const bool aligned =
        bytes % alignment_ == 0 && (offset == kOutside || offset % alignment_ == 0);
    MEMO_REQUIRE(InvalidArgument, bytes > 0 && aligned)
        << "request " << k << " has " << bytes << " bytes at offset " << offset
        << "; both must be multiples of " << alignment_;
    MEMO_REQUIRE(InvalidArgument, offset == kOutside || offset <= UINT64_MAX / 2 - bytes)
        << "request " << k << " ends beyond 2^63: " << bytes << " bytes at offset " << offset;
  }
  uint64_t first = 0;
  for (const Mark& mark : marks_) {
    MEMO_REQUIRE(InvalidArgument, mark.first >= first && mark.first <= requests_.size())
        << "a mark stands before request " << mark.first << ", the one before it at " << first
        << ", of " << requests_.size() << " requests";
    first = mark.first;
  }
}

void StepLayout::FindWaits() {
  LastOwners owners;
  std::vector<std::pair<Number, Number>> pairs;  // (earlier, later)
  waits_.assign(requests_.size(), 0);
  for (Number k = 0; k < size(); ++k) {
    const auto [bytes, offset] = requests_[k];
    if (offset == kOutside) continue;
    peak_bytes_ = std::max<size_t>(peak_bytes_, offset + bytes);
    // Offsets and ends lie below 2^63, as checked; kOutside never comes here.
    owners.Take(offset, offset + bytes, k, [&](Number earlier) { pairs.emplace_back(earlier, k); });
  }
  std::sort(pairs.begin(), pairs.end());
  // An owner whose range was split by others is seen once for each piece.
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
  start_.assign(requests_.size() + 1, 0);
  for (const auto& [earlier, later] : pairs) {
    ++start_[earlier + 1];
    ++waits_[later];
    waiting_.push_back(later);
  }
  for (size_t k = 0; k < requests_.size(); ++k) start_[k + 1] += start_[k];
}

void StepLayout::NumberSlots() {
  size_t buckets = 2;
  // Buckets are 2^(64 - shift_): the hash is the product's highest bits, its best mixed ones.
  for (shift_ = 63; buckets < 2 * requests_.size(); buckets *= 2) --shift_;
  table_.assign(buckets, Entry());
  slots_.assign(requests_.size(), 0);
  for (Number k = 0; k < size(); ++k) {
    const uint64_t offset = requests_[k].offset;
    if (offset == kOutside) continue;
    Entry& entry = table_[Bucket(offset)];
    if (entry.offset == kOutside) entry = Entry{offset, num_slots_++};
    slots_[k] = entry.slot;
  }
}

// The bucket that holds `offset`, or the empty one where it would go.
size_t StepLayout::Bucket(uint64_t offset) const {
  // Below the alignment offsets are all alike.
  size_t bucket = (offset / alignment_ * kGoldenRatio) >> shift_;
  while (table_[bucket].offset != offset && table_[bucket].offset != kOutside) {
    bucket = (bucket + 1) & (table_.size() - 1);
  }
  return bucket;
}

uint32_t StepLayout::FindSlot(uint64_t offset) const {
  const Entry& entry = table_[Bucket(offset)];
  return entry.offset == kOutside ? num_slots_ : entry.slot;
}

}  // namespace memo
