// Transfers between device memory and host ranges, ordered so that host memory is never raced on.
#ifndef MEMO_COPIES_TRANSFER_H_
#define MEMO_COPIES_TRANSFER_H_

#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "device.h"

namespace memo {

// Two copy streams, one for each direction, over any device. Guarantees, besides the device's:
//
//   * A copy starts after the work that compute was given before it.
//   * On one host range the two directions keep the order of the calls: a copy to the device sees
//     what earlier copies to the host wrote, and a copy to the host does not overwrite what an
//     earlier copy to the device still reads.
//
// Host ranges are tracked whole, as AllocHost gave them: allocate what is copied together.
// On one *device* range the order of the two directions, and of copies and compute's later work,
// is the caller's: wait for the returned event. Any thread may call any method.
class Transfer {
 public:
  explicit Transfer(std::shared_ptr<Device> device);

  // See Device::AllocHost. Where only retired ranges are in the way, it waits for their copies.
  void* AllocHost(size_t bytes);
  // Throws InvalidArgument while a copy of the range is not done, and for an unknown address.
  void FreeHost(void* data);
  // FreeHost for callers that run ahead of the device: the range is given back when the copies of
  // it are done, and counts as used until then. Throws InvalidArgument for an unknown address.
  void RetireHost(void* data);

  // Start a copy after what `compute` was given so far, and return its event. Throw
  // InvalidArgument, with nothing started, if the host side does not lie in one live host range or
  // the device side not in one live allocation.
  EventPtr ToHost(const CopySpec& copy, ComputeStream compute) {
    return AllToHost({copy}, compute);
  }
  EventPtr ToDevice(const CopySpec& copy, ComputeStream compute) {
    return AllToDevice({copy}, compute);
  }
  // The same of several copies, in their order, with one event for all of them.
  EventPtr AllToHost(const std::vector<CopySpec>& copies, ComputeStream compute);
  EventPtr AllToDevice(const std::vector<CopySpec>& copies, ComputeStream compute);

  const std::shared_ptr<Device>& device() const { return device_; }

 private:
  struct HostRange {
    size_t bytes = 0;
    EventPtr written;  // last copy into the range, or null
    EventPtr read;     // last copy out of it, or null
    bool Pending() const;
  };
  using Ranges = std::map<const char*, HostRange>;  // by start

  Ranges::iterator FindStart(void* data, const char* call);
  void FreeRetired();
  void WaitForOldestRetired();
  HostRange& FindRange(const void* data, size_t bytes);
  // Copies that start after the event `after` of their ranges; their own event becomes `done`.
  EventPtr Start(Direction direction, const std::vector<CopySpec>& copies, ComputeStream compute,
                 EventPtr HostRange::* after, EventPtr HostRange::* done);

  const std::shared_ptr<Device> device_;
  const StreamId to_host_;
  const StreamId to_device_;
  std::mutex mutex_;
  Ranges ranges_;
  std::deque<Ranges::node_type> retired_;  // the longest retired first
};

// The event of a transfer as a caller holds it: keeps the device alive.
class TransferEvent {
 public:
  TransferEvent(std::shared_ptr<Device> device, EventPtr event)
      : device_(std::move(device)), event_(std::move(event)) {}
  bool Done() const { return event_->Done(); }
  // `compute` waits.
  void Wait(ComputeStream compute) const { device_->ComputeWait(compute, event_); }

 private:
  std::shared_ptr<Device> device_;
  EventPtr event_;
};

}  // namespace memo

#endif  // MEMO_COPIES_TRANSFER_H_
