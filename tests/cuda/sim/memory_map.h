// Device allocations and pinned host ranges of a simulated machine.
#ifndef MEMO_TESTS_CUDA_SIM_MEMORY_MAP_H_
#define MEMO_TESTS_CUDA_SIM_MEMORY_MAP_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "sim/access_history.h"

namespace sim {

struct Allocation {
  size_t bytes = 0;
  int device = 0;
  bool live = true;
  bool mapped = false;  // counted by the handles behind it
};

// Freed addresses are not used again while the map lives, so that a late use is seen as one.
// Memory that was never written, and memory that was freed, is full of 0xFF bytes.
class MemoryMap {
 public:
  explicit MemoryMap(size_t device_bytes) : device_bytes_(device_bytes) {}

  // Null if `device` has less than `bytes` left.
  void* Alloc(size_t bytes, int device);
  // Memory without addresses, for Map; 0 if `device` has less than `bytes` left.
  uint64_t Create(size_t bytes, int device);
  bool Release(uint64_t handle) { return created_.erase(handle) > 0; }
  // Its memory lies at `data` from now on; its bytes, or 0 if there is no such handle.
  size_t Map(void* data, uint64_t handle);
  // False unless one mapped allocation ends where the range does.
  bool Unmap(Range range);
  size_t NumCreated() const { return created_.size(); }
  // False if no live allocation starts there.
  bool Free(void* data);
  // Memory of the test's own stands for device memory from now on.
  void Adopt(void* data, size_t bytes, int device);
  // The allocation, live or freed, that has the first byte of `range`, or null.
  const Allocation* Find(Range range) const;
  // Whether all of `range` is in one live allocation.
  bool IsLive(Range range) const;
  size_t FreeBytes(int device) const;
  size_t device_bytes() const { return device_bytes_; }

  // False if some of the range is pinned already.
  bool Pin(void* data, size_t bytes);
  // The range that starts there and is pinned no more; empty if none does.
  Range Unpin(void* data);
  bool IsPinned(Range range) const;

  size_t NumLive() const;
  size_t NumPinned() const { return pinned_.size(); }
  size_t NumPinnedBytes() const;

 private:
  using Allocations = std::map<uintptr_t, Allocation>;
  Allocations::const_iterator Holder(uintptr_t place) const;

  const size_t device_bytes_;
  Allocations allocations_;
  struct Created {
    size_t bytes;
    int device;
  };
  std::map<uint64_t, Created> created_;
  uint64_t next_created_ = 1;
  std::vector<std::unique_ptr<char[]>> blocks_;
  std::map<uintptr_t, uintptr_t> pinned_;  // begin -> end
};

}  // namespace sim

#endif  // MEMO_TESTS_CUDA_SIM_MEMORY_MAP_H_
