#include "memory/address_space.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"

namespace memo {

AddressSpace::AddressSpace(size_t limit_bytes) : limit_bytes_(limit_bytes) {
  if (limit_bytes > 0) AddHole(0, limit_bytes);
}

std::optional<size_t> AddressSpace::TakeBySize(size_t bytes) {
  // A planned range is not worth a refusal.
  if (bytes > LargestHole()) GiveUpStep();
  if (bytes > LargestHole()) return std::nullopt;
  const bool is_large = large_bytes_ && bytes >= *large_bytes_;
  const size_t offset = is_large ? TakeHighest(bytes) : TakeLowest(bytes);
  live_.emplace(offset, bytes);
  RaiseHighWater();  // planned requests need not: BeginStep has counted their whole range
  CountTaken(bytes);
  return offset;
}

std::optional<size_t> AddressSpace::NextPlanned(size_t bytes) const {
  return replay_ ? replay_->Next(bytes) : std::nullopt;
}

void AddressSpace::RaiseHighWater() {
  counters_.high_water_bytes = std::max(counters_.high_water_bytes, limit_bytes_ - LargestHole());
}

size_t AddressSpace::TakeHighest(size_t bytes) {
  const auto hole = std::find_if(holes_.rbegin(), holes_.rend(),
                                 [bytes](const auto& each) { return each.second >= bytes; });
  // base() is the element after the one that a reverse iterator means.
  return TakeFromHole(std::prev(hole.base()), bytes, /*at_end=*/true);
}

size_t AddressSpace::TakeLowest(size_t bytes) {
  const auto hole = std::find_if(holes_.begin(), holes_.end(),
                                 [bytes](const auto& each) { return each.second >= bytes; });
  return TakeFromHole(hole, bytes, /*at_end=*/false);
}

size_t AddressSpace::TakeFromHole(Ranges::iterator hole, size_t bytes, bool at_end) {
  const auto [offset, hole_bytes] = *hole;
  EraseHole(hole);
  const size_t rest = hole_bytes - bytes;
  if (rest > 0) AddHole(at_end ? offset : offset + bytes, rest);
  return at_end ? offset + rest : offset;
}

size_t AddressSpace::FreeBySize(size_t offset) {
  const auto block = live_.find(offset);
  if (block == live_.end()) return 0;
  const size_t bytes = block->second;
  live_.erase(block);
  AddHole(offset, bytes);
  return bytes;
}

size_t AddressSpace::LiveBytes(size_t offset) const {
  if (replay_ && replay_->Covers(offset)) return replay_->LiveBytes(offset);
  const auto block = live_.find(offset);
  return block == live_.end() ? 0 : block->second;
}

bool AddressSpace::IsLive(size_t offset, size_t bytes) const {
  if (replay_ && replay_->IsLive(offset, bytes)) return true;
  auto block = live_.upper_bound(offset);
  if (block == live_.begin()) return false;
  --block;
  // In this order no subtraction wraps round, whatever is asked.
  const size_t inside = offset - block->first;
  return inside < block->second && bytes <= block->second - inside;
}

bool AddressSpace::BeginStep(std::shared_ptr<const StepLayout> layout,
                             Replay::ServedThreads served) {
  // Of a step that nobody has ended, such as one whose backward failed.
  if (replay_) DissolveRange();
  done_.reset();
  // Not 0 bytes, even for a layout of nothing: there may be no hole at all to take them from.
  const size_t bytes = std::max(layout->peak_bytes(), kAlignment);
  if (bytes > LargestHole()) return false;
  const bool at_top = large_bytes_.has_value();  // where large requests go, if any are
  replay_.emplace(std::move(layout), at_top ? TakeHighest(bytes) : TakeLowest(bytes), served);
  counters_.planned_bytes = bytes;
  RaiseHighWater();
  return true;
}

void AddressSpace::Mark(uint64_t value) {
  if (replay_) replay_->Mark(value);
}

std::optional<ReplayCounts> AddressSpace::EndStep() {
  if (replay_) {
    replay_->End();
    DissolveRange();
  }
  return std::exchange(done_, std::nullopt);
}

void AddressSpace::GiveUpStep() {
  if (!replay_) return;
  DissolveRange();
  done_->given_up = true;
}

// What lives in the planned range becomes like all else, and the rest of the range holes.
void AddressSpace::DissolveRange() {
  size_t at = replay_->base();
  const size_t end = at + std::exchange(counters_.planned_bytes, 0);
  for (const auto& [offset, bytes] : replay_->Live()) {
    if (offset > at) AddHole(at, offset - at);
    live_.emplace(offset, bytes);
    at = offset + bytes;
  }
  done_ = replay_->counts();
  replay_.reset();
  if (end > at) AddHole(at, end - at);
}

void AddressSpace::AddHole(size_t offset, size_t bytes) {
  const auto next = holes_.find(offset + bytes);
  if (next != holes_.end()) {
    bytes += next->second;
    EraseHole(next);
  }
  const auto after = holes_.lower_bound(offset);
  if (after != holes_.begin()) {
    const auto previous = std::prev(after);
    if (previous->first + previous->second == offset) {
      offset = previous->first;
      bytes += previous->second;
      EraseHole(previous);
    }
  }
  holes_.emplace(offset, bytes);
  hole_sizes_.insert(bytes);
}

void AddressSpace::EraseHole(Ranges::iterator hole) {
  hole_sizes_.erase(hole_sizes_.find(hole->second));  // one of that size, not all of them
  holes_.erase(hole);
}

size_t AddressSpace::EndOfLive() const {
  const size_t end = live_.empty() ? 0 : live_.rbegin()->first + live_.rbegin()->second;
  return replay_ ? std::max(end, replay_->base() + counters_.planned_bytes) : end;
}

void AddressSpace::SetLimit(size_t limit_bytes) {
  const size_t before = std::exchange(limit_bytes_, limit_bytes);
  if (limit_bytes > before) AddHole(before, limit_bytes - before);
  if (limit_bytes >= before) return;
  const auto last = std::prev(holes_.end());  // nothing is live above, so it reaches to the end
  MEMO_CHECK(last->first + last->second == before)
      << "the last hole ends at " << last->first + last->second;
  const size_t offset = last->first;
  EraseHole(last);
  if (limit_bytes > offset) AddHole(offset, limit_bytes - offset);
}

void AddressSpace::ResetPeak() {
  counters_.peak_bytes = counters_.used_bytes;
  counters_.high_water_bytes = limit_bytes_ - LargestHole();
}

}  // namespace memo
