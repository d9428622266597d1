#include "memory/host_pool.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"

namespace memo {

HostPool::HostPool(PagePinner* pinner)
    : page_bytes_(static_cast<size_t>(sysconf(_SC_PAGESIZE))), pinner_(pinner) {}

void* HostPool::Alloc(size_t bytes) {
  MEMO_REQUIRE(InvalidArgument, bytes > 0) << "host_alloc needs at least 1 byte, asked 0";
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t free = CapBytes() - std::min(CapBytes(), counters_.used_bytes);
  if (bytes > free || RoundUp(bytes, page_bytes_) > free) Refuse(bytes, "");
  bytes = RoundUp(bytes, page_bytes_);
  void* data = TakeFromSlab(bytes);
  if (data == nullptr) {
    Pages pages = TakeCached(bytes);
    if (pages.data() == nullptr) pages = Map(bytes);
    data = pages.data();
    used_.emplace(data, Range{nullptr, std::move(pages), bytes});
  }
  counters_.used_bytes += bytes;
  counters_.peak_bytes = std::max(counters_.peak_bytes, counters_.used_bytes);
  ever_used_bytes_ = std::max(ever_used_bytes_, counters_.used_bytes);
  if (poison_) std::memset(data, 0xFF, bytes);
  return data;
}

void* HostPool::TakeFromSlab(size_t bytes) {
  for (const std::unique_ptr<Slab>& slab : slabs_) {
    const std::optional<size_t> offset = slab->space.Take(bytes);
    if (!offset) continue;
    void* const data = slab->pages.data() + *offset;
    used_.emplace(data, Range{slab.get(), Pages(), bytes});
    return data;
  }
  return nullptr;
}

void HostPool::Reserve(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t most = CapBytes() - std::min(CapBytes(), counters_.used_bytes);
  // Rounded up where that does not wrap round, then cut to what the cap allows.
  const size_t wanted =
      RoundDown(std::min(RoundUp(std::min(bytes, most), page_bytes_), most), page_bytes_);
  if (wanted <= SlabFreeBytes()) return;
  DropIdleSlabs();
  Evict(0);
  const size_t missing = wanted - std::min(wanted, SlabFreeBytes());
  if (missing == 0) return;
  Pages pages(missing, pinner_);
  if (pages.data() == nullptr) Refuse(missing, "; the system refuses to map or pin it");
  slabs_.push_back(std::make_unique<Slab>(std::move(pages), missing));
}

HostPool::Pages HostPool::TakeCached(size_t bytes) {
  // The newest of that size: its pages are the most likely to be in the processor's cache.
  const auto found = std::find_if(cached_.rbegin(), cached_.rend(),
                                  [&](const Pages& range) { return range.bytes() == bytes; });
  if (found == cached_.rend()) return Pages();
  Pages range = std::move(*found);
  cached_.erase(std::next(found).base());
  loose_bytes_ -= bytes;
  return range;
}

HostPool::Pages HostPool::Map(size_t bytes) {
  const size_t used_bytes = counters_.used_bytes + bytes;
  Evict(std::max(ever_used_bytes_, used_bytes) - used_bytes);
  // What slabs hold in pieces, or for a plan that is over, may be what the cap lacks.
  if (!MakeRoom(bytes, CapBytes())) Refuse(bytes, "; what is free is in smaller pieces");
  Pages range(bytes, pinner_);
  if (range.data() == nullptr) {
    Evict(0);  // what is kept may be what the system lacks
    DropIdleSlabs();
    range = Pages(bytes, pinner_);
  }
  if (range.data() == nullptr) Refuse(bytes, "; the system refuses to map or pin it");
  return range;
}

void HostPool::Evict(size_t most_bytes) {
  while (loose_bytes_ > most_bytes) {
    loose_bytes_ -= cached_.front().bytes();
    cached_.pop_front();
  }
}

bool HostPool::MakeRoom(size_t bytes, size_t cap_bytes) {
  const auto fits = [&] { return bytes <= cap_bytes && PinnedBytes() <= cap_bytes - bytes; };
  const size_t above = fits() ? 0 : PinnedBytes() + bytes - cap_bytes;
  Evict(loose_bytes_ - std::min(loose_bytes_, above));
  if (!fits()) DropIdleSlabs();
  return fits();
}

void HostPool::DropIdleSlabs() {
  const auto idle = [](const std::unique_ptr<Slab>& slab) {
    return slab->space.counters().live_allocations == 0;
  };
  slabs_.erase(std::remove_if(slabs_.begin(), slabs_.end(), idle), slabs_.end());
}

size_t HostPool::SlabFreeBytes() const {
  size_t bytes = 0;
  for (const std::unique_ptr<Slab>& slab : slabs_) bytes += slab->FreeBytes();
  return bytes;
}

size_t HostPool::PinnedBytes() const {
  return counters_.used_bytes + loose_bytes_ + SlabFreeBytes();
}

size_t HostPool::CapBytes() const {
  // Half of all addresses, so that what is not refused can be rounded up.
  return counters_.cap_bytes.value_or(std::numeric_limits<size_t>::max() / 2);
}

void HostPool::Free(void* data) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = used_.find(data);
  MEMO_REQUIRE(InvalidArgument, found != used_.end())
      << "host_free of " << data << ": the host pool did not hand out this address, or it was "
      << "freed before";
  Range range = std::move(found->second);
  used_.erase(found);
  counters_.used_bytes -= range.bytes;
  if (poison_) std::memset(data, 0xFF, range.bytes);
  if (range.slab != nullptr) {
    range.slab->space.Free(
        static_cast<size_t>(static_cast<char*>(data) - range.slab->pages.data()));
    return;
  }
  loose_bytes_ += range.bytes;
  cached_.push_back(std::move(range.pages));
}

void HostPool::SetCap(std::optional<size_t> cap_bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (cap_bytes) {
    MEMO_REQUIRE(InvalidArgument, *cap_bytes > 0)
        << "the host cap must be positive, got 0; use None for no cap";
    MEMO_REQUIRE(InvalidArgument, *cap_bytes >= counters_.used_bytes)
        << "the host cap of " << FormatBytes(*cap_bytes) << " is below the "
        << FormatBytes(counters_.used_bytes) << " in use; free host ranges first, or set a higher "
        << "cap";
    MakeRoom(0, *cap_bytes);
    ever_used_bytes_ = std::min(ever_used_bytes_, *cap_bytes);
  }
  counters_.cap_bytes = cap_bytes;
}

void HostPool::SetPoison(bool on) {
  std::lock_guard<std::mutex> lock(mutex_);
  poison_ = on;
}

HostPoolCounters HostPool::Counters() const {
  std::lock_guard<std::mutex> lock(mutex_);
  HostPoolCounters counters = counters_;
  counters.cached_bytes = loose_bytes_ + SlabFreeBytes();
  return counters;
}

void HostPool::ResetPeak() {
  std::lock_guard<std::mutex> lock(mutex_);
  counters_.peak_bytes = counters_.used_bytes;
}

void HostPool::Refuse(size_t bytes, const char* reason) const {
  Message message;
  message << "host memory exceeded: asked " << FormatBytes(bytes) << " (whole pages of "
          << page_bytes_ << " bytes), used " << FormatBytes(counters_.used_bytes) << ", ";
  if (counters_.cap_bytes) {
    message << "cap " << FormatBytes(*counters_.cap_bytes);
  } else {
    message << "no cap";
  }
  message << reason << "; raise the host cap, or swap fewer token tiles";
  throw HostMemoryExceeded(message.Text());
}

}  // namespace memo
