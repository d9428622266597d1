// The CPU device: an arena, a host pool, and copies on worker threads.
#ifndef MEMO_CPU_CPU_DEVICE_H_
#define MEMO_CPU_CPU_DEVICE_H_

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "copies/clock.h"
#include "copies/copy_stream.h"
#include "copies/link.h"
#include "device.h"
#include "memory/arena.h"
#include "memory/host_pool.h"

namespace memo {

struct DeviceCounters {
  ArenaCounters device;
  HostPoolCounters host;
  LinkCounters to_host;
  LinkCounters to_device;
  StopWatch::Reading stalls;  // compute blocked in ComputeWait
};

// A real device, not a simulation: device memory is an arena, a copy is a memcpy on another thread.
// The calling thread is the compute stream.
//
// After fork() the child has the arena's contents but none of the threads: memory calls go on
// working there, calls that need a copy stream throw ForkedProcess.
class CpuDevice : public Device {
 public:
  // `reserve_bytes`: addresses for device memory, see Arena.
  explicit CpuDevice(size_t reserve_bytes);
  ~CpuDevice() override;

  void CheckUsable() const override;
  void* AllocDevice(size_t bytes) override { return arena_.Alloc(bytes); }
  void FreeDevice(void* data) override { arena_.Free(data); }
  void* AllocHost(size_t bytes) override { return host_pool_.Alloc(bytes); }
  void FreeHost(void* data) override { host_pool_.Free(data); }
  StreamId CreateStream(Direction direction) override;
  void CopyAsync(StreamId stream, const CopySpec& copy) override { CopyAllAsync(stream, {copy}); }
  void CopyAllAsync(StreamId stream, const std::vector<CopySpec>& copies) override;
  EventPtr Record(StreamId stream) override;
  EventPtr RecordCompute(ComputeStream compute) override;
  void StreamWait(StreamId stream, const EventPtr& event) override;
  void ComputeWait(ComputeStream compute, const EventPtr& event) override;
  void HostWait(const EventPtr& event) override;
  double Now() const override { return NowSeconds(); }

  // Blocks until every stream is idle. Not counted as a stall.
  void Synchronize();

  Arena& arena() { return arena_; }
  HostPool& host_pool() { return host_pool_; }

  // Bytes per second shared by all streams of a direction; nullopt for no limit.
  // Throws InvalidArgument unless finite and positive; then neither limit changes.
  void SetBandwidth(std::optional<double> to_host, std::optional<double> to_device);

  // The test mode of CopyStream::SetAdversary, for streams that exist and streams to come; nullopt
  // ends it.
  void SetAdversary(std::optional<uint64_t> seed);
  // Fills freed and fresh memory of arena and host pool with 0xFF bytes.
  void SetPoison(bool on);

  DeviceCounters Counters() const;
  // Sets peaks to what is in use now.
  void ResetPeak();
  // Sets copies, bytes, busy seconds and stalls to zero.
  void ResetCounters();

  // The arena as two C functions: what the tensor library's allocator hook is given.
  // `arena` is an Arena*. Returns memory, or null after writing why, cut to `error_bytes` bytes
  // with a closing zero, to `error`. Never throws.
  static void* AllocForHook(void* arena, size_t bytes, char* error, size_t error_bytes) noexcept;

  // Ends the process with a message if `data` is not a live allocation of the arena: there is no
  // caller to raise in, and going on would corrupt memory.
  static void FreeForHook(void* arena, void* data) noexcept;

 private:
  struct Stream {
    Direction direction;
    CopyStream work;
    Stream(StreamId id, Direction direction, Link* link) : direction(direction), work(id, link) {}
  };

  Stream& FindStream(StreamId stream);
  Link& LinkOf(Direction direction) { return links_[static_cast<size_t>(direction)]; }

  const pid_t owner_;
  Arena arena_;
  HostPool host_pool_;
  std::array<Link, 2> links_;  // by Direction
  StopWatch stalls_;
  mutable std::mutex mutex_;  // guards what follows
  std::optional<uint64_t> adversary_seed_;
  std::vector<std::unique_ptr<Stream>> streams_;  // StreamId - 1
};

}  // namespace memo

#endif  // MEMO_CPU_CPU_DEVICE_H_
