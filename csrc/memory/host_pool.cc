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
  // Half of all addresses, so that what is not refused can be rounded up.
  const size_t limit = counters_.cap_bytes.value_or(std::numeric_limits<size_t>::max() / 2);
  const size_t free = limit - std::min(limit, counters_.used_bytes);
  if (bytes > free || RoundUp(bytes, page_bytes_) > free) Refuse(bytes, "");
  bytes = RoundUp(bytes, page_bytes_);
  Pages range = TakeCached(bytes);
  if (range.data() == nullptr) range = Map(bytes);
  counters_.used_bytes += bytes;
  counters_.peak_bytes = std::max(counters_.peak_bytes, counters_.used_bytes);
  ever_used_bytes_ = std::max(ever_used_bytes_, counters_.used_bytes);
  if (poison_) std::memset(range.data(), 0xFF, bytes);
  void* data = range.data();
  used_.emplace(data, std::move(range));
  return data;
}

HostPool::Pages HostPool::TakeCached(size_t bytes) {
  // The newest of that size: its pages are the most likely to be in the processor's cache.
  const auto found = std::find_if(cached_.rbegin(), cached_.rend(),
                                  [&](const Pages& range) { return range.bytes() == bytes; });
  if (found == cached_.rend()) return Pages();
  Pages range = std::move(*found);
  cached_.erase(std::next(found).base());
  counters_.cached_bytes -= bytes;
  return range;
}

HostPool::Pages HostPool::Map(size_t bytes) {
  const size_t used_bytes = counters_.used_bytes + bytes;
  Evict(std::max(ever_used_bytes_, used_bytes) - used_bytes);
  Pages range(bytes, pinner_);
  if (range.data() == nullptr) {
    Evict(0);  // what is kept may be what the system lacks
    range = Pages(bytes, pinner_);
  }
  if (range.data() == nullptr) Refuse(bytes, "; the system refuses to map or pin it");
  return range;
}

void HostPool::Evict(size_t most_bytes) {
  while (counters_.cached_bytes > most_bytes) {
    counters_.cached_bytes -= cached_.front().bytes();
    cached_.pop_front();
  }
}

void HostPool::Free(void* data) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = used_.find(data);
  MEMO_REQUIRE(InvalidArgument, found != used_.end())
      << "host_free of " << data << ": the host pool did not hand out this address, or it was "
      << "freed before";
  Pages range = std::move(found->second);
  used_.erase(found);
  counters_.used_bytes -= range.bytes();
  counters_.cached_bytes += range.bytes();
  if (poison_) std::memset(range.data(), 0xFF, range.bytes());
  cached_.push_back(std::move(range));
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
    Evict(*cap_bytes - counters_.used_bytes);
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
  return counters_;
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
