// A CUDA device: non-blocking copy streams, pooled events, pinned host memory.
#ifndef MEMO_CUDA_CUDA_DEVICE_H_
#define MEMO_CUDA_CUDA_DEVICE_H_

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "copies/clock.h"
#include "copies/link.h"
#include "cuda/cuda_calls.h"
#include "cuda/cuda_events.h"
#include "device.h"
#include "memory/host_pool.h"

namespace memo {

struct CudaCounters {
  // What AllocDevice has handed out. Memory that others allocated on the device is not in it.
  struct Memory {
    size_t used_bytes = 0;
    size_t peak_bytes = 0;  // largest used_bytes since ResetPeak
    uint64_t live_allocations = 0;
    uint64_t allocations = 0;  // ever made
  };

  Memory device;
  HostPoolCounters host;
  LinkCounters to_host;  // busy_s: of copies that are over, by the device's own clock
  LinkCounters to_device;
  uint64_t stalls = 0;  // compute was told to wait for an event that was not done
  double stall_s = 0;   // it stood still for, in waits that are over, by the device's own clock
};

// One GPU as device.h describes it. Compute is the tensor library's current stream.
//
// There may be several devices in one process; every call makes its own current for as long as it
// runs. CUDA's error codes become CudaError, but a refusal of memory DeviceMemoryExceeded or
// HostMemoryExceeded. A failure that a destructor meets is thrown by the next CheckUsable.
class CudaDevice : public Device {
 public:
  // How many devices the process sees: 0 where there is no driver. Throws CudaError when a driver
  // is there and does not work.
  static int Count();

  // Throws InvalidArgument if there is no device `ordinal`.
  explicit CudaDevice(int ordinal);
  // Waits for the copy streams. Everything the device handed out is invalid afterwards.
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  void CheckUsable() const override { calls_->CheckUsable(); }
  void* AllocDevice(size_t bytes) override;
  // Throws InvalidArgument for an address that AllocDevice did not hand out.
  void FreeDevice(void* data) override;
  void* AllocHost(size_t bytes) override;
  void FreeHost(void* data) override;
  // HostPool::Reserve: pins now what later calls of AllocHost need.
  void ReserveHost(size_t bytes);
  StreamId CreateStream(Direction direction) override;
  // The device side may be anybody's memory on this device; its first and last byte are looked at.
  void CopyAsync(StreamId stream, const CopySpec& copy) override { CopyAllAsync(stream, {copy}); }
  void CopyAllAsync(StreamId stream, const std::vector<CopySpec>& copies) override;
  EventPtr Record(StreamId stream) override;
  EventPtr RecordCompute(ComputeStream compute) override;
  void StreamWait(StreamId stream, const EventPtr& event) override;
  void ComputeWait(ComputeStream compute, const EventPtr& event) override;
  void HostWait(const EventPtr& event) override;
  double Now() const override { return NowSeconds(); }

  // Blocks until every copy stream is idle.
  void Synchronize();
  // Blocks until compute is.
  void SynchronizeCompute(ComputeStream compute);

  // The device's memory, whoever uses it.
  size_t MemoryBytes() const;
  // Whether `data` is memory of this device, whoever allocated it.
  bool Owns(const void* data) const;

  int ordinal() const { return calls_->ordinal(); }
  // The node that pinned pages are asked from, or negative where the system has none.
  int numa_node() const;
  HostPool& host_pool() { return *host_pool_; }

  CudaCounters Counters() const;
  // Sets peaks to what is in use now.
  void ResetPeak();
  // Sets copies, bytes, stalls and seconds to zero.
  void ResetCounters();

 private:
  class Pages;

  struct Stream {
    Direction direction;
    cudaStream_t handle;
  };

  void Refuse(size_t bytes) const;
  Stream FindStream(StreamId stream) const;
  void CopyRows(const CopySpec& copy, const Stream& stream) const;
  void Destroy();

  // Behind pointers, so that a fork can let them go without a call to CUDA. In this order, because
  // each uses those before it when it is destroyed.
  std::unique_ptr<CudaCalls> calls_;
  std::unique_ptr<Pages> pages_;
  std::unique_ptr<HostPool> host_pool_;
  std::unique_ptr<CudaEventPool> events_;
  std::unique_ptr<CudaEventPool> timed_events_;
  size_t max_pitch_bytes_ = 0;
  std::array<Link, 2> links_;             // by Direction
  std::array<CudaStopwatch, 2> copying_;  // by Direction
  CudaStopwatch stalled_;
  mutable std::mutex mutex_;     // guards what follows
  std::vector<Stream> streams_;  // StreamId - 1
  std::unordered_map<void*, size_t> live_;
  CudaCounters::Memory memory_;
  uint64_t stalls_ = 0;
};

}  // namespace memo

#endif  // MEMO_CUDA_CUDA_DEVICE_H_
