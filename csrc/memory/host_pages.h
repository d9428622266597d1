// Mapped host pages that a device has prepared for its copies, for as long as they are mapped.
#ifndef MEMO_MEMORY_HOST_PAGES_H_
#define MEMO_MEMORY_HOST_PAGES_H_

#include <cstddef>
#include <utility>

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

// An empty range (`data() == nullptr`) is one that the system refused to map or to pin.
class HostPages {
 public:
  HostPages() = default;
  // Without a pinner pages are only mapped. The pinner must outlive them.
  HostPages(size_t bytes, PagePinner* pinner) : range_(bytes) {
    if (pinner == nullptr || range_.data() == nullptr) return;
    if (pinner->Pin(range_.data(), bytes)) {
      pinner_ = pinner;
    } else {
      range_ = MappedRange();
    }
  }
  HostPages(HostPages&& other) noexcept { *this = std::move(other); }
  HostPages& operator=(HostPages&& other) noexcept {
    std::swap(range_, other.range_);
    std::swap(pinner_, other.pinner_);
    return *this;
  }
  HostPages(const HostPages&) = delete;
  HostPages& operator=(const HostPages&) = delete;
  ~HostPages() {
    if (pinner_ != nullptr) pinner_->Unpin(range_.data(), range_.bytes());
  }

  char* data() const { return range_.data(); }
  size_t bytes() const { return range_.bytes(); }

 private:
  MappedRange range_;
  PagePinner* pinner_ = nullptr;
};

}  // namespace memo

#endif  // MEMO_MEMORY_HOST_PAGES_H_
