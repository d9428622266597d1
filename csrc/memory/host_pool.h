// The host pool: where swapped tensors live, outside the arena, under a cap.
#ifndef MEMO_MEMORY_HOST_POOL_H_
#define MEMO_MEMORY_HOST_POOL_H_

#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory/address_space.h"
#include "memory/mapped_range.h"

namespace memo {

// What a device does to pages before the first copy and after the last. Any thread may call it.
class PagePinner {
 public:
  virtual ~PagePinner() = default;
  // Whether the system had room; `data` is page-aligned, `bytes` whole pages, none touched yet.
  // Throws where it is no matter of room.
  virtual bool Pin(void* data, size_t bytes) = 0;
  virtual void Unpin(void* data, size_t bytes) noexcept = 0;
};

// Bytes are whole pages: the only rounding the pool does.
struct HostPoolCounters {
  size_t used_bytes = 0;
  size_t peak_bytes = 0;    // largest used_bytes since ResetPeak
  size_t cached_bytes = 0;  // given back by the caller and kept, or reserved and not in use
  std::optional<size_t> cap_bytes;
};

// Page-aligned host memory. All methods may be called from any thread.
//
// Mapping fresh pages costs more than copying into them, and pinning them more than that. So what a
// step will need is reserved before it: a slab, in which ranges of any sizes are placed first fit.
// A range for which there is no slab is mapped by itself, and kept for the next request of its size
// when it is freed; of such ranges used + cached never exceeds the most that was ever in use: those
// of a size that is no longer asked for are unmapped, the longest unused first. used + cached of
// all never exceeds the cap, but for what a lower cap finds in a slab that is in use.
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

  // Maps and pins now what ranges of `bytes` together will need beside those in use, in as few
  // slabs as there can be: one, where nothing is in use. Does nothing if the slabs have that much;
  // no more than the cap allows is reserved. Throws HostMemoryExceeded, with nothing reserved, if
  // the system refuses.
  void Reserve(size_t bytes);

  // Sets the cap; nullopt removes it. Throws InvalidArgument for 0 and for less than is in use.
  void SetCap(std::optional<size_t> cap_bytes);

  // Whether freed and newly allocated ranges are filled with 0xFF bytes.
  void SetPoison(bool on);

  HostPoolCounters Counters() const;
  void ResetPeak();

 private:
  // Mapped pages that the pinner has prepared, for as long as they are mapped. An empty range
  // (`data() == nullptr`) is one that the system refused to map or to pin.
  class Pages {
   public:
    Pages() = default;
    // Without a pinner pages are only mapped.
    Pages(size_t bytes, PagePinner* pinner) : range_(bytes) {
      if (pinner == nullptr || range_.data() == nullptr) return;
      if (pinner->Pin(range_.data(), bytes)) {
        pinner_ = pinner;
      } else {
        range_ = MappedRange();
      }
    }
    Pages(Pages&& other) noexcept { *this = std::move(other); }
    Pages& operator=(Pages&& other) noexcept {
      std::swap(range_, other.range_);
      std::swap(pinner_, other.pinner_);
      return *this;
    }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    ~Pages() {
      if (pinner_ != nullptr) pinner_->Unpin(range_.data(), range_.bytes());
    }

    char* data() const { return range_.data(); }
    size_t bytes() const { return range_.bytes(); }

   private:
    MappedRange range_;
    PagePinner* pinner_ = nullptr;
  };

  // Pages for ranges of any sizes.
  struct Slab {
    Slab(Pages mapped, size_t bytes) : pages(std::move(mapped)), space(bytes) {}
    size_t FreeBytes() const { return space.limit_bytes() - space.counters().used_bytes; }

    Pages pages;
    AddressSpace space;
  };
  // What Alloc has handed out: a part of a slab, or pages of its own.
  struct Range {
    Slab* slab = nullptr;  // of slabs_, or null
    Pages pages;
    size_t bytes = 0;
  };

  void* TakeFromSlab(size_t bytes);
  Pages TakeCached(size_t bytes);
  Pages Map(size_t bytes);
  void Evict(size_t most_bytes);
  // Gives back what is kept until `bytes` more fit under `cap_bytes`, slabs last; whether they do.
  bool MakeRoom(size_t bytes, size_t cap_bytes);
  void DropIdleSlabs();
  size_t SlabFreeBytes() const;
  size_t PinnedBytes() const;
  size_t CapBytes() const;
  [[noreturn]] void Refuse(size_t bytes, const char* reason) const;

  const size_t page_bytes_;
  PagePinner* const pinner_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Slab>> slabs_;
  std::unordered_map<void*, Range> used_;
  std::deque<Pages> cached_;    // the longest unused first
  size_t loose_bytes_ = 0;      // of cached_
  size_t ever_used_bytes_ = 0;  // largest used_bytes ever, at most the cap
  bool poison_ = false;
  HostPoolCounters counters_;  // cached_bytes is made when it is asked for
};

}  // namespace memo

#endif  // MEMO_MEMORY_HOST_POOL_H_
