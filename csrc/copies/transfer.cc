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

EventPtr Transfer::AllToHost(const std::vector<CopySpec>& copies, ComputeStream compute) {
  // Not after what was written: that is the same stream, which keeps its order itself.
  return Start(Direction::kToHost, copies, compute, &HostRange::read, &HostRange::written);
}

EventPtr Transfer::AllToDevice(const std::vector<CopySpec>& copies, ComputeStream compute) {
  return Start(Direction::kToDevice, copies, compute, &HostRange::written, &HostRange::read);
}

EventPtr Transfer::Start(Direction direction, const std::vector<CopySpec>& copies,
                         ComputeStream compute, EventPtr HostRange::* after,
                         EventPtr HostRange::* done) {
  device_->CheckUsable();
  for (const CopySpec& copy : copies) copy.Check();
  const bool to_host = direction == Direction::kToHost;
  const StreamId stream = to_host ? to_host_ : to_device_;
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<HostRange*> ranges;
  for (const CopySpec& copy : copies) {
    HostRange& range = to_host ? FindRange(copy.target, copy.TargetExtentBytes())
                               : FindRange(copy.source, copy.SourceExtentBytes());
    // What goes together mostly lies in one range.
    if (ranges.empty() || ranges.back() != &range) ranges.push_back(&range);
  }
  device_->StreamWait(stream, device_->RecordCompute(compute));
  for (const HostRange* range : ranges) {
    if (range->*after != nullptr) device_->StreamWait(stream, range->*after);
  }
  device_->CopyAllAsync(stream, copies);
  const EventPtr event = device_->Record(stream);
  for (HostRange* range : ranges) range->*done = event;
  return event;
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

}  // namespace memo
