// The host pool: where swapped tensors live, outside the arena, in exact sizes, under a cap.
#ifndef MEMO_MEMORY_HOST_POOL_H_
#define MEMO_MEMORY_HOST_POOL_H_

#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "memory/host_pages.h"

namespace memo {

// Bytes are whole pages: the only rounding the pool does.
struct HostPoolCounters {
  size_t used_bytes = 0;
  size_t peak_bytes = 0;    // largest used_bytes since ResetPeak
  size_t cached_bytes = 0;  // given back by the caller and kept for a request of the same size
  std::optional<size_t> cap_bytes;
};

// Page-aligned host memory. All methods may be called from any thread.
//
// A freed range is kept for the next request of its size, because mapping fresh pages costs more
// than copying into them. used + cached never exceeds the cap, nor the most that was ever in use:
// a range of a size that is no longer asked for is unmapped, the longest unused first.
class HostPool {
 public:
  // `pinner`: what is done to pages as they are mapped, or null; must outlive the pool.
  explicit HostPool(PagePinner* pinner = nullptr);

  // `bytes` > 0, rounded up to whole pages. Throws InvalidArgument for 0 bytes and
  // HostMemoryExceeded, with asked, used and cap in the message, if it does not fit.
  void* Alloc(size_t bytes);

  // Gives back what Alloc returned. Throws InvalidArgument for any other address, also for one that
  // was freed before.
  void Free(void* data);

  // Sets the cap; nullopt removes it. Throws InvalidArgument for 0 and for less than is in use.
  void SetCap(std::optional<size_t> cap_bytes);

  // Whether freed and newly allocated ranges are filled with 0xFF bytes.
  void SetPoison(bool on);

  HostPoolCounters Counters() const;
  void ResetPeak();

 private:
  HostPages TakeCached(size_t bytes);
  HostPages Map(size_t bytes);
  void Evict(size_t most_bytes);
  [[noreturn]] void Refuse(size_t bytes, const char* reason) const;

  const size_t page_bytes_;
  PagePinner* const pinner_;
  mutable std::mutex mutex_;
  std::unordered_map<void*, HostPages> used_;
  std::deque<HostPages> cached_;  // the longest unused first
  size_t ever_used_bytes_ = 0;    // largest used_bytes ever, at most the cap
  bool poison_ = false;
  HostPoolCounters counters_;
};

}  // namespace memo

#endif  // MEMO_MEMORY_HOST_POOL_H_
