#include "sim/memory_map.h"

#include <algorithm>
#include <cstring>
#include <iterator>

namespace sim {
namespace {

constexpr size_t kAlignment = 256;
constexpr int kPoison = 0xFF;

}  // namespace

void* MemoryMap::Alloc(size_t bytes, int device) {
  if (bytes > FreeBytes(device)) return nullptr;
  blocks_.push_back(std::make_unique<char[]>(bytes + kAlignment));
  const auto begin = reinterpret_cast<uintptr_t>(blocks_.back().get());
  char* data = blocks_.back().get() + (kAlignment - begin % kAlignment);
  std::memset(data, kPoison, bytes);
  Adopt(data, bytes, device);
  return data;
}

void MemoryMap::Adopt(void* data, size_t bytes, int device) {
  allocations_[reinterpret_cast<uintptr_t>(data)] = Allocation{bytes, device, true, false};
}

uint64_t MemoryMap::Create(size_t bytes, int device) {
  if (bytes > FreeBytes(device)) return 0;
  created_[next_created_] = Created{bytes, device};
  return next_created_++;
}

size_t MemoryMap::Map(void* data, uint64_t handle) {
  const auto found = created_.find(handle);
  if (found == created_.end()) return 0;
  const auto [bytes, device] = found->second;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const auto before = Holder(begin - 1);
  if (before != allocations_.end() && before->second.mapped &&
      before->first + before->second.bytes == begin) {
    allocations_[before->first].bytes += bytes;
  } else {
    allocations_[begin] = Allocation{bytes, device, true, true};
  }
  return bytes;
}

bool MemoryMap::Unmap(Range range) {
  const auto found = Holder(range.begin);
  if (found == allocations_.end() || !found->second.mapped) return false;
  if (found->first + found->second.bytes != range.end) return false;
  const uintptr_t begin = found->first;
  allocations_[begin].bytes = range.begin - begin;
  if (range.begin == begin) allocations_.erase(begin);
  return true;
}

bool MemoryMap::Free(void* data) {
  const auto found = allocations_.find(reinterpret_cast<uintptr_t>(data));
  if (found == allocations_.end() || !found->second.live) return false;
  found->second.live = false;
  std::memset(data, kPoison, found->second.bytes);
  return true;
}

MemoryMap::Allocations::const_iterator MemoryMap::Holder(uintptr_t place) const {
  auto found = allocations_.upper_bound(place);
  if (found == allocations_.begin()) return allocations_.end();
  --found;
  return place < found->first + found->second.bytes ? found : allocations_.end();
}

const Allocation* MemoryMap::Find(Range range) const {
  const auto found = Holder(range.begin);
  return found == allocations_.end() ? nullptr : &found->second;
}

bool MemoryMap::IsLive(Range range) const {
  const auto found = Holder(range.begin);
  return found != allocations_.end() && found->second.live &&
         range.end <= found->first + found->second.bytes;
}

size_t MemoryMap::FreeBytes(int device) const {
  size_t used = 0;
  for (const auto& [begin, allocation] : allocations_) {
    const bool counts = allocation.live && !allocation.mapped;
    if (counts && allocation.device == device) used += allocation.bytes;
  }
  for (const auto& [handle, created] : created_) {
    if (created.device == device) used += created.bytes;
  }
  return device_bytes_ - std::min(device_bytes_, used);
}

bool MemoryMap::Pin(void* data, size_t bytes) {
  const Range range = RangeOf(data, bytes);
  const auto next = pinned_.lower_bound(range.begin);
  if (next != pinned_.end() && next->first < range.end) return false;
  if (next != pinned_.begin() && std::prev(next)->second > range.begin) return false;
  pinned_[range.begin] = range.end;
  return true;
}

Range MemoryMap::Unpin(void* data) {
  const auto found = pinned_.find(reinterpret_cast<uintptr_t>(data));
  if (found == pinned_.end()) return Range();
  const Range range{found->first, found->second};
  pinned_.erase(found);
  return range;
}

bool MemoryMap::IsPinned(Range range) const {
  auto found = pinned_.upper_bound(range.begin);
  if (found == pinned_.begin()) return false;
  --found;
  return range.end <= found->second;
}

size_t MemoryMap::NumPinnedBytes() const {
  size_t bytes = 0;
  for (const auto& [begin, end] : pinned_) bytes += end - begin;
  return bytes;
}

size_t MemoryMap::NumLive() const {
  return static_cast<size_t>(std::count_if(allocations_.begin(), allocations_.end(),
                                           [](const auto& entry) { return entry.second.live; }));
}

}  // namespace sim
