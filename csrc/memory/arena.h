// The arena: device memory as one range of addresses with a cap on the highest usable one.
#ifndef MEMO_MEMORY_ARENA_H_
#define MEMO_MEMORY_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "memory/address_space.h"
#include "memory/mapped_range.h"
#include "memory/recording.h"

namespace memo {

// What an arena holds; offsets count from its start.
struct ArenaCounters : AddressSpace::Counters {
  size_t largest_hole_bytes = 0;    // the largest request that would be served now
  std::optional<size_t> cap_bytes;  // as set; nullopt: no cap
  size_t reserved_bytes = 0;
};

// An address space over one reserved range of memory. Any method, any thread.
//
// Under a cap large requests are served from the top of the capped range downward and small ones
// from the bottom upward. The tensors of all tokens are then among their like, and what a tile
// makes never splits the room they need. Without a cap everything is small. The cap bounds
// addresses, not the sum of sizes, so memory lost to fragmentation counts against it, as it does on
// a real device.
class Arena {
 public:
  static constexpr size_t kAlignment = AddressSpace::kAlignment;

  // Reserves `reserve_bytes` of addresses, or the largest half, quarter, ... that the system gives.
  // Physical memory is taken when a page is first touched and kept from then on.
  // Throws DeviceMemoryExceeded if not even 1 MiB can be reserved.
  explicit Arena(size_t reserve_bytes);

  // `bytes` > 0, 64-byte aligned, contents undefined. Throws InvalidArgument for 0 bytes and
  // DeviceMemoryExceeded, with asked, used and cap in the message, if it does not fit.
  void* Alloc(size_t bytes);

  // Gives back what Alloc returned. Throws InvalidArgument for any other address, also for one that
  // was freed before.
  void Free(void* data);

  // Sets the cap; nullopt removes it. Throws InvalidArgument for 0, and for a cap below the end of
  // the highest live allocation: memory cannot be moved.
  void SetCap(std::optional<size_t> cap_bytes);

  // The smallest large request from now on; nullopt: a share of what is free when the cap is set.
  void SetLargeBytes(std::optional<size_t> bytes);

  // Whether freed and newly allocated memory is filled with 0xFF bytes (NaN in every float type).
  void SetPoison(bool on);

  // Whether `data` is an address of the reserved range.
  bool Owns(const void* data) const;

  // Whether [data, data + bytes) lies within one live allocation.
  bool IsLive(const void* data, size_t bytes) const;

  ArenaCounters Counters() const;
  void ResetPeak();

  // Records every allocation and free from now on; what is live then is freed without an
  // allocation in the record. Mark adds a mark of the caller's to it, and tells the step under way.
  void StartRecording();
  void Mark(uint64_t value);
  std::vector<MemoryEvent> StopRecording();

  // Serves the calling thread's next step by `layout`, in a range taken for it, until EndStep.
  // False, and nothing is planned, if no hole is large enough. A step under way ends.
  bool BeginStep(std::shared_ptr<const StepLayout> layout);
  // Ends the step under way; what it did, or nothing if none has begun. Its range is given back;
  // what still lives in it stays where it is.
  std::optional<ReplayCounts> EndStep();

  // Held across fork(), so that the child finds the arena in a consistent state.
  void LockForFork() { mutex_.lock(); }
  void UnlockAfterFork() { mutex_.unlock(); }

 private:
  size_t LimitBytes() const;
  void ApplyLargeBytes();
  void Record(MemoryEvent::Kind kind, uint64_t offset, uint64_t bytes);
  [[noreturn]] void Refuse(size_t bytes) const;

  mutable std::mutex mutex_;
  MappedRange range_;
  AddressSpace space_;
  std::optional<size_t> cap_bytes_;
  std::optional<size_t> large_bytes_;  // as set
  size_t large_share_bytes_ = 0;       // what counts where nothing is set
  bool poison_ = false;
  Recording recording_;
};

}  // namespace memo

#endif  // MEMO_MEMORY_ARENA_H_
