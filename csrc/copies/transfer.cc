#include "copies/transfer.h"

#include <iterator>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"

namespace memo {
namespace {

bool Pending(const EventPtr& event) { return event != nullptr && !event->Done(); }

}  // namespace

Transfer::Transfer(std::shared_ptr<Device> device)
    : device_(std::move(device)),
      to_host_(device_->CreateStream(Direction::kToHost)),
      to_device_(device_->CreateStream(Direction::kToDevice)) {}

bool Transfer::HostRange::Pending() const {
  return ::memo::Pending(written) || ::memo::Pending(read);
}

void* Transfer::AllocHost(size_t bytes) {
  device_->CheckUsable();
  std::lock_guard<std::mutex> lock(mutex_);
  FreeRetired();
  void* data = nullptr;
  while (data == nullptr) {
    try {
      data = device_->AllocHost(bytes);
    } catch (const HostMemoryExceeded&) {
      if (retired_.empty()) throw;
      WaitForOldestRetired();
    }
  }
  ranges_[static_cast<char*>(data)].bytes = bytes;
  return data;
}

void Transfer::FreeHost(void* data) {
  device_->CheckUsable();
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = FindStart(data, "host_free");
  const HostRange& range = found->second;
  MEMO_REQUIRE(InvalidArgument, !range.Pending())
      << "host_free of " << data << " (" << FormatBytes(range.bytes) << ") while a copy "
      << (Pending(range.written) ? "into" : "out of")
      << " it is not done; wait for its event first";
  device_->FreeHost(data);
  ranges_.erase(found);
}

void Transfer::RetireHost(void* data) {
  device_->CheckUsable();
  std::lock_guard<std::mutex> lock(mutex_);
  retired_.push_back(ranges_.extract(FindStart(data, "host_retire")));
  FreeRetired();
}

EventPtr Transfer::ToHost(const CopySpec& copy, ComputeStream compute) {
  device_->CheckUsable();
  copy.Check();
  std::lock_guard<std::mutex> lock(mutex_);
  HostRange& range = FindRange(copy.target, copy.TargetExtentBytes());
  // Not after range.written: that is the same stream, which keeps its order itself.
  After(to_host_, compute, range.read);
  device_->CopyAsync(to_host_, copy);
  return range.written = device_->Record(to_host_);
}

EventPtr Transfer::ToDevice(const CopySpec& copy, ComputeStream compute) {
  device_->CheckUsable();
  copy.Check();
  std::lock_guard<std::mutex> lock(mutex_);
  HostRange& range = FindRange(copy.source, copy.SourceExtentBytes());
  After(to_device_, compute, range.written);
  device_->CopyAsync(to_device_, copy);
  return range.read = device_->Record(to_device_);
}

Transfer::Ranges::iterator Transfer::FindStart(void* data, const char* call) {
  const auto found = ranges_.find(static_cast<char*>(data));
  MEMO_REQUIRE(InvalidArgument, found != ranges_.end())
      << call << " of " << data << ": no host range starts there; it was freed before, or the "
      << "address points into the middle of one";
  return found;
}

// In their order only: one that is done may wait behind one that is not, and is freed after it.
void Transfer::FreeRetired() {
  while (!retired_.empty() && !retired_.front().mapped().Pending()) {
    device_->FreeHost(const_cast<char*>(retired_.front().key()));
    retired_.pop_front();
  }
}

void Transfer::WaitForOldestRetired() {
  const HostRange& range = retired_.front().mapped();
  if (range.written != nullptr) device_->HostWait(range.written);
  if (range.read != nullptr) device_->HostWait(range.read);
  FreeRetired();
}

Transfer::HostRange& Transfer::FindRange(const void* data, size_t bytes) {
  const char* start = static_cast<const char*>(data);
  auto found = ranges_.upper_bound(start);
  const bool known = found != ranges_.begin();
  if (known) --found;
  const size_t inside = known ? static_cast<size_t>(start - found->first) : 0;
  MEMO_REQUIRE(InvalidArgument,
               known && inside < found->second.bytes && bytes <= found->second.bytes - inside)
      << "copy: " << FormatBytes(bytes) << " at host address " << data
      << " do not lie in one range of host_alloc";
  return found->second;
}

void Transfer::After(StreamId stream, ComputeStream compute, const EventPtr& other_direction) {
  device_->StreamWait(stream, device_->RecordCompute(compute));
  if (other_direction != nullptr) device_->StreamWait(stream, other_direction);
}

}  // namespace memo
