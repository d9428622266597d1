#include "memory/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <thread>
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
    // No reserve: most of the range is never touched and need not be there.
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

Arena::Arena(size_t reserve_bytes) : range_(Reserve(reserve_bytes)), space_(range_.bytes()) {}

void* Arena::Alloc(size_t bytes) {
  MEMO_REQUIRE(InvalidArgument, bytes > 0) << "an allocation needs at least 1 byte, asked 0";
  std::lock_guard<std::mutex> lock(mutex_);
  if (bytes > range_.bytes()) Refuse(bytes);  // also whatever would overflow when rounded
  const size_t rounded = RoundUp(bytes, kAlignment);
  const std::optional<size_t> offset = space_.Take(rounded);
  if (!offset) Refuse(rounded);
  Record(MemoryEvent::Kind::kAlloc, *offset, rounded);
  char* data = range_.data() + *offset;
  if (poison_) Poison(data, rounded);
  return data;
}

void Arena::Free(void* data) {
  std::lock_guard<std::mutex> lock(mutex_);
  MEMO_REQUIRE(InvalidArgument, Owns(data)) << "free of " << data << ": not an arena address";
  const size_t offset = static_cast<char*>(data) - range_.data();
  const size_t bytes = space_.Free(offset);
  MEMO_REQUIRE(InvalidArgument, bytes > 0)
      << "free of " << data << ": no live allocation starts there; it was freed before, or the "
      << "address points into the middle of one";
  if (poison_) Poison(static_cast<char*>(data), bytes);
  Record(MemoryEvent::Kind::kFree, offset, bytes);
}

void Arena::Record(MemoryEvent::Kind kind, uint64_t offset, uint64_t bytes) {
  if (!recording_.on()) return;  // Add looks as well, but then the thread is hashed for nothing
  recording_.Add(kind, offset, bytes, std::hash<std::thread::id>()(std::this_thread::get_id()));
}

bool Arena::BeginStep(std::shared_ptr<const StepLayout> layout) {
  std::lock_guard<std::mutex> lock(mutex_);
  return space_.BeginStep(std::move(layout), Replay::ServedThreads::kCalling);
}

std::optional<ReplayCounts> Arena::EndStep() {
  std::lock_guard<std::mutex> lock(mutex_);
  return space_.EndStep();
}

void Arena::SetCap(std::optional<size_t> cap_bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t used_bytes = space_.counters().used_bytes;
  if (cap_bytes) {
    MEMO_REQUIRE(InvalidArgument, *cap_bytes > 0)
        << "the device cap must be positive, got 0; use None for no cap";
    const size_t end = space_.EndOfLive();
    // Memory cannot be moved: what lies above would stay there.
    MEMO_REQUIRE(InvalidArgument, *cap_bytes >= end)
        << "the device cap of " << FormatBytes(*cap_bytes) << " is below live device memory, which "
        << "ends at " << FormatBytes(end) << " (" << FormatBytes(used_bytes)
        << " in use); free tensors first, or set a higher cap";
  }
  cap_bytes_ = cap_bytes;
  space_.SetLimit(LimitBytes());
  // Not negative: what is used lies below the limit.
  large_share_bytes_ = std::max(kAlignment, (LimitBytes() - used_bytes) / kLargeShare);
  ApplyLargeBytes();
}

void Arena::SetLargeBytes(std::optional<size_t> bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  large_bytes_ = bytes;
  ApplyLargeBytes();
}

void Arena::ApplyLargeBytes() {
  space_.SetLargeBytes(cap_bytes_ ? large_bytes_.value_or(large_share_bytes_)
                                  : std::optional<size_t>());
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
  std::lock_guard<std::mutex> lock(mutex_);
  return space_.IsLive(static_cast<const char*>(data) - range_.data(), bytes);
}

ArenaCounters Arena::Counters() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return ArenaCounters{space_.counters(), space_.LargestHole(), cap_bytes_, range_.bytes()};
}

void Arena::ResetPeak() {
  std::lock_guard<std::mutex> lock(mutex_);
  space_.ResetPeak();
}

void Arena::StartRecording() {
  std::lock_guard<std::mutex> lock(mutex_);
  recording_.Start();
}

void Arena::Mark(uint64_t value) {
  std::lock_guard<std::mutex> lock(mutex_);
  Record(MemoryEvent::Kind::kMark, value, 0);
  space_.Mark(value);
}

std::vector<MemoryEvent> Arena::StopRecording() {
  std::lock_guard<std::mutex> lock(mutex_);
  return recording_.Stop();
}

size_t Arena::LimitBytes() const {
  return RoundDown(std::min(cap_bytes_.value_or(range_.bytes()), range_.bytes()), kAlignment);
}

void Arena::Refuse(size_t bytes) const {
  Message message;
  message << "device memory exceeded: asked " << FormatBytes(bytes) << ", used "
          << FormatBytes(space_.counters().used_bytes) << ", ";
  if (cap_bytes_) {
    message << "cap " << FormatBytes(*cap_bytes_);
  } else {
    message << "no cap, reserved range " << FormatBytes(range_.bytes());
  }
  message << ", largest free hole " << FormatBytes(space_.LargestHole())
          << "; raise the cap, or use a shorter sequence or smaller token tiles";
  throw DeviceMemoryExceeded(message.Text());
}

}  // namespace memo
