#include "device/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"

namespace memo {
namespace {

constexpr size_t kSmallestReserveBytes = size_t{1} << 20;

// On recorded steps 1/24 to 1/64 need 2 to 8 % more than their peak, 1/16 and 1/128 need 8 to 15 %.
constexpr size_t kLargeShare = 32;

MappedRange Reserve(size_t bytes) {
  for (bytes = RoundUp(bytes, kSmallestReserveBytes); bytes >= kSmallestReserveBytes; bytes /= 2) {
    MappedRange range(RoundDown(bytes, kSmallestReserveBytes), MAP_NORESERVE);
    if (range.data() == nullptr) continue;
    // Fewer page faults and TLB misses; a kernel that refuses costs only speed.
    madvise(range.data(), range.bytes(), MADV_HUGEPAGE);
    return range;
  }
  throw DeviceMemoryExceeded("the system refuses to reserve even 1 MiB of addresses for the arena");
}

void Poison(char* data, size_t bytes) { std::memset(data, 0xFF, bytes); }

}  // namespace

Arena::Arena(size_t reserve_bytes) : range_(Reserve(reserve_bytes)) {
  counters_.reserved_bytes = range_.bytes();
  AddHole(0, LimitBytes());
}

void* Arena::Alloc(size_t bytes) {
  MEMO_REQUIRE(InvalidArgument, bytes > 0) << "an allocation needs at least 1 byte, asked 0";
  std::lock_guard<std::mutex> lock(mutex_);
  if (bytes > range_.bytes()) Refuse(bytes);  // also whatever would overflow when rounded
  const size_t rounded = RoundUp(bytes, kAlignment);
  const size_t offset = Place(rounded);
  counters_.used_bytes += rounded;
  counters_.peak_bytes = std::max(counters_.peak_bytes, counters_.used_bytes);
  ++counters_.live_allocations;
  ++counters_.allocations;
  recording_.Add(ArenaEventKind::kAlloc, offset, rounded);
  char* data = range_.data() + offset;
  if (poison_) Poison(data, rounded);
  return data;
}

// At its planned address, or where there is a hole. Where there is none, the planned range is not
// worth a refusal: the step goes on without it.
size_t Arena::Place(size_t bytes) {
  if (replay_) {
    if (const std::optional<size_t> planned = replay_->Alloc(bytes)) return *planned;
    if (bytes > LargestHole()) {
      DissolveRange();
      done_->given_up = true;
    }
  }
  if (bytes > LargestHole()) Refuse(bytes);
  const size_t offset = Take(bytes);
  live_.emplace(offset, bytes);
  counters_.high_water_bytes = std::max(counters_.high_water_bytes, LimitBytes() - LargestHole());
  return offset;
}

size_t Arena::Take(size_t bytes) { return IsLarge(bytes) ? TakeHighest(bytes) : TakeLowest(bytes); }

size_t Arena::TakeHighest(size_t bytes) {
  const auto hole = std::find_if(holes_.rbegin(), holes_.rend(),
                                 [bytes](const auto& each) { return each.second >= bytes; });
  return TakeFromHole(std::prev(hole.base()), bytes, /*at_end=*/true);
}

size_t Arena::TakeLowest(size_t bytes) {
  const auto hole = std::find_if(holes_.begin(), holes_.end(),
                                 [bytes](const auto& each) { return each.second >= bytes; });
  return TakeFromHole(hole, bytes, /*at_end=*/false);
}

size_t Arena::TakeFromHole(Ranges::iterator hole, size_t bytes, bool at_end) {
  const auto [offset, hole_bytes] = *hole;
  EraseHole(hole);
  const size_t rest = hole_bytes - bytes;
  if (rest > 0) AddHole(at_end ? offset : offset + bytes, rest);
  return at_end ? offset + rest : offset;
}

void Arena::Free(void* data) {
  std::lock_guard<std::mutex> lock(mutex_);
  MEMO_REQUIRE(InvalidArgument, Owns(data)) << "free of " << data << ": not an arena address";
  const size_t offset = static_cast<char*>(data) - range_.data();
  size_t bytes = replay_ ? replay_->Free(offset) : 0;
  if (bytes == 0) {
    const auto block = FindLive(data);
    bytes = block->second;
    live_.erase(block);
    AddHole(offset, bytes);
  }
  if (poison_) Poison(static_cast<char*>(data), bytes);
  recording_.Add(ArenaEventKind::kFree, offset, bytes);
  counters_.used_bytes -= bytes;
  --counters_.live_allocations;
}

bool Arena::BeginStep(std::shared_ptr<const StepLayout> layout) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (replay_) DissolveRange();
  done_.reset();
  const size_t bytes = std::max(layout->peak_bytes(), kAlignment);
  if (bytes > LargestHole()) return false;
  const bool at_top = counters_.cap_bytes.has_value();
  replay_.emplace(std::move(layout), at_top ? TakeHighest(bytes) : TakeLowest(bytes));
  counters_.planned_bytes = bytes;
  counters_.high_water_bytes = std::max(counters_.high_water_bytes, LimitBytes() - LargestHole());
  return true;
}

std::optional<ReplayCounts> Arena::EndStep() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (replay_) {
    replay_->End();
    DissolveRange();
  }
  return std::exchange(done_, std::nullopt);
}

// What lives in the planned range becomes like all else, and the rest of the range holes.
void Arena::DissolveRange() {
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

Arena::Ranges::iterator Arena::FindLive(void* data) {
  const auto block = live_.find(static_cast<char*>(data) - range_.data());
  MEMO_REQUIRE(InvalidArgument, block != live_.end())
      << "free of " << data << ": no live allocation starts there; it was freed before, or the "
      << "address points into the middle of one";
  return block;
}

void Arena::AddHole(size_t offset, size_t bytes) {
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

void Arena::EraseHole(Ranges::iterator hole) {
  hole_sizes_.erase(hole_sizes_.find(hole->second));
  holes_.erase(hole);
}

void Arena::SetCap(std::optional<size_t> cap_bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (cap_bytes) {
    MEMO_REQUIRE(InvalidArgument, *cap_bytes > 0)
        << "the device cap must be positive, got 0; use None for no cap";
    const size_t end = EndOfLive();
    MEMO_REQUIRE(InvalidArgument, *cap_bytes >= end)
        << "the device cap of " << FormatBytes(*cap_bytes) << " is below live device memory, which "
        << "ends at " << FormatBytes(end) << " (" << FormatBytes(counters_.used_bytes)
        << " in use); free tensors first, or set a higher cap";
  }
  const size_t limit_before = LimitBytes();
  counters_.cap_bytes = cap_bytes;
  MoveLimit(limit_before, LimitBytes());
  large_share_bytes_ = std::max(kAlignment, (LimitBytes() - counters_.used_bytes) / kLargeShare);
}

size_t Arena::EndOfLive() const {
  const size_t end = live_.empty() ? 0 : live_.rbegin()->first + live_.rbegin()->second;
  return replay_ ? std::max(end, replay_->base() + counters_.planned_bytes) : end;
}

void Arena::MoveLimit(size_t from, size_t to) {
  if (to > from) AddHole(from, to - from);
  if (to >= from) return;
  const auto last = std::prev(holes_.end());  // nothing is live above `to`, so it reaches to `from`
  MEMO_CHECK(last->first + last->second == from)
      << "the last hole ends at " << last->first + last->second;
  const size_t offset = last->first;
  EraseHole(last);
  if (to > offset) AddHole(offset, to - offset);
}

void Arena::SetLargeBytes(std::optional<size_t> bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  large_bytes_ = bytes;
}

void Arena::SetPoison(bool on) {
  std::lock_guard<std::mutex> lock(mutex_);
  poison_ = on;
}

bool Arena::Owns(const void* data) const {
  const auto address = reinterpret_cast<uintptr_t>(data);
  const auto start = reinterpret_cast<uintptr_t>(range_.data());
  return address >= start && address - start < range_.bytes();
}

bool Arena::IsLive(const void* data, size_t bytes) const {
  if (!Owns(data)) return false;
  const size_t offset = static_cast<const char*>(data) - range_.data();
  std::lock_guard<std::mutex> lock(mutex_);
  if (replay_ && replay_->IsLive(offset, bytes)) return true;
  auto block = live_.upper_bound(offset);
  if (block == live_.begin()) return false;
  --block;
  const size_t inside = offset - block->first;
  return inside < block->second && bytes <= block->second - inside;
}

ArenaCounters Arena::Counters() const {
  std::lock_guard<std::mutex> lock(mutex_);
  ArenaCounters counters = counters_;
  counters.largest_hole_bytes = LargestHole();
  return counters;
}

void Arena::ResetPeak() {
  std::lock_guard<std::mutex> lock(mutex_);
  counters_.peak_bytes = counters_.used_bytes;
  counters_.high_water_bytes = LimitBytes() - LargestHole();
}

void Arena::StartRecording() {
  std::lock_guard<std::mutex> lock(mutex_);
  recording_.Start();
}

void Arena::Mark(uint64_t value) {
  std::lock_guard<std::mutex> lock(mutex_);
  recording_.Add(ArenaEventKind::kMark, value, 0);
  if (replay_) replay_->Mark(value);
}

std::vector<ArenaEvent> Arena::StopRecording() {
  std::lock_guard<std::mutex> lock(mutex_);
  return recording_.Stop();
}

size_t Arena::LimitBytes() const {
  const size_t cap = counters_.cap_bytes.value_or(range_.bytes());
  return RoundDown(std::min(cap, range_.bytes()), kAlignment);
}

void Arena::Refuse(size_t bytes) const {
  Message message;
  message << "device memory exceeded: asked " << FormatBytes(bytes) << ", used "
          << FormatBytes(counters_.used_bytes) << ", ";
  if (counters_.cap_bytes) {
    message << "cap " << FormatBytes(*counters_.cap_bytes);
  } else {
    message << "no cap, reserved range " << FormatBytes(range_.bytes());
  }
  message << ", largest free hole " << FormatBytes(LargestHole())
          << "; raise the cap, or use a shorter sequence or smaller token tiles";
  throw DeviceMemoryExceeded(message.Text());
}

}  // namespace memo
