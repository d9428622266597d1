// The device under a plan: memory, streams, events and asynchronous copies.
//
// The contract is the one of a GPU, so that a plan which is right on the CPU device is right there:
//
//   * Work runs on streams. Work of one stream runs in the order in which it was given. Nothing is
//     promised about the order of two streams except through events.
//   * Compute is the stream of the tensor library's kernels. On a GPU it runs behind the calling
//     thread. On the CPU it *is* the calling thread: an event recorded on it is done at once, and
//     making it wait blocks the caller. Which stream that is now the caller says at each call: a
//     device that asked would run foreign code, and under locks.
//   * A copy may run at any time between CopyAsync and the moment an event recorded after it is
//     waited for. Until then neither side may be freed, the source not written, the destination
//     neither read nor written.
//   * Freeing device memory does not wait for copies: free only after the wait.
//
// Methods may be called from any thread. Events must not outlive their device.
#ifndef MEMO_DEVICE_H_
#define MEMO_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace memo {

// What a copy moves: `rows` runs of `row_bytes` bytes, the starts of neighbouring runs
// `*_pitch_bytes` apart. One row is a plain copy, its pitches are ignored.
struct CopySpec {
  void* target = nullptr;
  const void* source = nullptr;
  size_t rows = 1;
  size_t row_bytes = 0;
  size_t target_pitch_bytes = 0;
  size_t source_pitch_bytes = 0;

  size_t Bytes() const { return rows * row_bytes; }
  size_t TargetExtentBytes() const { return (rows - 1) * target_pitch_bytes + row_bytes; }
  size_t SourceExtentBytes() const { return (rows - 1) * source_pitch_bytes + row_bytes; }

  // Throws InvalidArgument unless there is something to copy, rows do not overlap, and no extent
  // is larger than an address space.
  void Check() const;

  // The same copy in as few rows as possible.
  CopySpec Joined() const;

  // Copies bytes [begin, end) of the rows laid end to end, now, on this thread.
  void CopyRange(size_t begin, size_t end) const;
};

enum class Direction { kToHost = 0, kToDevice = 1 };

// A point in the work of a stream.
class Event {
 public:
  virtual ~Event() = default;
  // Whether all work given to the stream before the event was recorded has finished. Never blocks.
  virtual bool Done() const = 0;
};
using EventPtr = std::shared_ptr<const Event>;

using StreamId = int;  // of a copy stream, from 1

// Handle of the stream that is compute at the time of the call. 0 is a GPU's default stream, and
// all there is on the CPU.
using ComputeStream = uintptr_t;

class Device {
 public:
  virtual ~Device() = default;

  // Throws if this process cannot use the device's streams (ForkedProcess).
  virtual void CheckUsable() const = 0;

  // Device memory, at least 64-byte aligned. Throws DeviceMemoryExceeded, InvalidArgument.
  virtual void* AllocDevice(size_t bytes) = 0;
  virtual void FreeDevice(void* data) = 0;

  // Host memory that copies reach at full speed (pinned on a GPU), page-aligned.
  // Throws HostMemoryExceeded, InvalidArgument.
  virtual void* AllocHost(size_t bytes) = 0;
  virtual void FreeHost(void* data) = 0;

  // A new stream that carries copies of one direction. Streams live as long as the device.
  virtual StreamId CreateStream(Direction direction) = 0;

  // Adds a copy to a stream made by CreateStream and returns at once. The device side must lie in
  // one live device allocation. Throws InvalidArgument if it does not, or if rows overlap.
  virtual void CopyAsync(StreamId stream, const CopySpec& copy) = 0;
  // The same of several copies in their order, which costs less than asking for each.
  virtual void CopyAllAsync(StreamId stream, const std::vector<CopySpec>& copies) {
    for (const CopySpec& copy : copies) CopyAsync(stream, copy);
  }

  // An event for everything given to `stream` so far; the same for compute.
  virtual EventPtr Record(StreamId stream) = 0;
  virtual EventPtr RecordCompute(ComputeStream compute) = 0;

  // Work given to `stream` from now on starts after `event`. Never blocks the caller.
  virtual void StreamWait(StreamId stream, const EventPtr& event) = 0;
  // The same for compute. Blocks the caller where compute is the caller. Counted as a stall if
  // `event` is not done.
  virtual void ComputeWait(ComputeStream compute, const EventPtr& event) = 0;

  // Blocks the calling thread until `event` is done. Never counted as a stall.
  virtual void HostWait(const EventPtr& event) = 0;

  // Seconds of a clock that never runs backwards; only differences mean something.
  virtual double Now() const = 0;
};

}  // namespace memo

#endif  // MEMO_DEVICE_H_
