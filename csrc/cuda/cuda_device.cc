#include "cuda/cuda_device.h"

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/check.h"

namespace memo {
namespace {

const CudaEvent& Cuda(const EventPtr& event) {
  const auto* found = dynamic_cast<const CudaEvent*>(event.get());
  MEMO_REQUIRE(InvalidArgument, found != nullptr) << "the event is not one of a CUDA device";
  return *found;
}

cudaStream_t Handle(ComputeStream compute) { return reinterpret_cast<cudaStream_t>(compute); }

bool HasDriver() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess && version != 0;
}

int Attribute(const CudaCalls& calls, cudaDeviceAttr attribute) {
  int value = 0;
  calls.Check(cudaDeviceGetAttribute(&value, attribute, calls.ordinal()), "cudaDeviceGetAttribute");
  return value;
}

// Has the system give memory to pages that it has only mapped. It clears them first, which one
// thread does at a fraction of the memory's speed, and pinning would do on one thread.
void TouchPages(char* data, size_t bytes) {
  constexpr size_t kBytesOfAThread = size_t{64} << 20;
  constexpr size_t kMostThreads = 16;
  const size_t page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const auto touch = [=](size_t begin, size_t end) {
    for (size_t at = begin; at < end; at += page_bytes) static_cast<volatile char*>(data)[at] = 0;
  };
  const size_t cores = std::max<size_t>(1, std::thread::hardware_concurrency());
  const size_t num_threads =
      std::clamp<size_t>(bytes / kBytesOfAThread, 1, std::min(cores, kMostThreads));
  const size_t share = RoundUp(bytes / num_threads + 1, page_bytes);
  std::vector<std::thread> others;
  for (size_t begin = share; begin < bytes; begin += share) {
    others.emplace_back(touch, begin, std::min(bytes, begin + share));
  }
  touch(0, std::min(bytes, share));
  for (std::thread& other : others) other.join();
}

}  // namespace

// Host pages as a CUDA device wants them: pinned, on the NUMA node beside it, not shared by forks.
// They are pinned where they are, so that a range costs what was asked and no more: runtimes that
// allocate pinned memory themselves may round its size up.
class CudaDevice::Pages : public PagePinner {
 public:
  // Asks the device for its NUMA node. Throws CudaError.
  explicit Pages(CudaCalls* calls)
      : calls_(calls), numa_node_(Attribute(*calls, cudaDevAttrHostNumaId)) {}

  // False when the system has no room for more pinned pages. Throws CudaError otherwise.
  bool Pin(void* data, size_t bytes) override {
    const CudaGuard guard(calls_);
    // A fork would make pages copy-on-write, and this process could then write to a copy while the
    // device goes on with the original.
    if (madvise(data, bytes, MADV_DONTFORK) != 0) return false;
    PreferNode(data, bytes);
    // Fewer entries in the tables of processor and device. Only speed hangs on it: kernels without
    // huge pages refuse.
    static_cast<void>(madvise(data, bytes, MADV_HUGEPAGE));
    TouchPages(static_cast<char*>(data), bytes);
    const cudaError_t code = cudaHostRegister(data, bytes, cudaHostRegisterPortable);
    if (code == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      return false;
    }
    calls_->Check(code, "cudaHostRegister", bytes);
    return true;
  }

  void Unpin(void* data, size_t) noexcept override {
    const CudaGuard guard(calls_, std::nothrow);
    calls_->Keep(cudaHostUnregister(data), "cudaHostUnregister");
  }

  int numa_node() const { return numa_node_; }

 private:
  void PreferNode(void* data, size_t bytes) const {
    constexpr int kMaskBits = 64;
    if (numa_node_ < 0 || numa_node_ >= kMaskBits) return;
    const unsigned long mask = 1UL << numa_node_;
    // Only speed hangs on it, and containers may forbid the call: a refusal is no error.
    // The kernel takes the last of the bits that it is told of off again, hence one more.
    syscall(SYS_mbind, data, bytes, MPOL_PREFERRED, &mask, kMaskBits + 1, 0);
  }

  CudaCalls* const calls_;
  const int numa_node_;
};

int CudaDevice::Count() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  // Without a driver the runtime says that the driver is too old.
  if (code == cudaErrorNoDevice || (code == cudaErrorInsufficientDriver && !HasDriver())) {
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  CudaCalls(0).Check(code, "cudaGetDeviceCount");
  return count;
}

CudaDevice::CudaDevice(int ordinal) {
  const int count = Count();
  MEMO_REQUIRE(InvalidArgument, 0 <= ordinal && ordinal < count)
      << "there is no CUDA device " << ordinal << ": this process sees " << count
      << "; look at the driver and at CUDA_VISIBLE_DEVICES, or use the CPU device";
  calls_ = std::make_unique<CudaCalls>(ordinal);
  max_pitch_bytes_ = static_cast<size_t>(Attribute(*calls_, cudaDevAttrMaxPitch));
  pages_ = std::make_unique<Pages>(calls_.get());
  host_pool_ = std::make_unique<HostPool>(pages_.get());
  events_ = std::make_unique<CudaEventPool>(calls_.get());
  timed_events_ = std::make_unique<CudaEventPool>(calls_.get(), CudaEventPool::Timing::kOn);
}

CudaDevice::~CudaDevice() {
  if (calls_->InOwner()) {
    Destroy();
    return;
  }
  // In a fork CUDA cannot be called, and the pinned pages are not mapped.
  static_cast<void>(events_.release());
  static_cast<void>(timed_events_.release());
  static_cast<void>(host_pool_.release());
}

void CudaDevice::Destroy() {
  const CudaGuard guard(calls_.get(), std::nothrow);
  for (const Stream& stream : streams_) {
    calls_->Keep(cudaStreamSynchronize(stream.handle), "cudaStreamSynchronize");
    calls_->Keep(cudaStreamDestroy(stream.handle), "cudaStreamDestroy");
  }
  for (const auto& [data, bytes] : live_) calls_->Keep(cudaFree(data), "cudaFree");
}

void* CudaDevice::AllocDevice(size_t bytes) {
  MEMO_REQUIRE(InvalidArgument, bytes > 0) << "device_alloc needs at least 1 byte, asked 0";
  const CudaGuard guard(calls_.get());
  void* data = nullptr;
  const cudaError_t code = cudaMalloc(&data, bytes);
  if (code == cudaErrorMemoryAllocation) Refuse(bytes);
  calls_->Check(code, "cudaMalloc", bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  live_.emplace(data, bytes);
  ++memory_.allocations;
  ++memory_.live_allocations;
  memory_.used_bytes += bytes;
  memory_.peak_bytes = std::max(memory_.peak_bytes, memory_.used_bytes);
  return data;
}

void CudaDevice::Refuse(size_t bytes) const {
  static_cast<void>(cudaGetLastError());
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  calls_->Check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  MEMO_REQUIRE(DeviceMemoryExceeded, false)
      << "device memory exceeded: asked " << FormatBytes(bytes) << ", free "
      << FormatBytes(free_bytes) << " of " << FormatBytes(total_bytes) << " on CUDA device "
      << ordinal() << "; swap or recompute more token tiles";
}

void CudaDevice::FreeDevice(void* data) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = live_.find(data);
    MEMO_REQUIRE(InvalidArgument, found != live_.end())
        << "device_free of " << data << ": CUDA device " << ordinal() << " did not hand out this "
        << "address, or it was freed before";
    memory_.used_bytes -= found->second;
    --memory_.live_allocations;
    live_.erase(found);
  }
  // Without the lock: cudaFree may wait for the device.
  const CudaGuard guard(calls_.get());
  calls_->Check(cudaFree(data), "cudaFree");
}

void* CudaDevice::AllocHost(size_t bytes) {
  CheckUsable();
  return host_pool_->Alloc(bytes);
}

void CudaDevice::ReserveHost(size_t bytes) {
  CheckUsable();
  host_pool_->Reserve(bytes);
}

void CudaDevice::FreeHost(void* data) {
  CheckUsable();
  host_pool_->Free(data);
}

StreamId CudaDevice::CreateStream(Direction direction) {
  CheckUsable();
  const CudaGuard guard(calls_.get());
  std::lock_guard<std::mutex> lock(mutex_);
  streams_.reserve(streams_.size() + 1);  // first, so that no handle is lost for want of memory
  cudaStream_t handle = nullptr;
  // Non-blocking: the default stream, where kernels may run, must not wait for copies by itself.
  calls_->Check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking),
                "cudaStreamCreateWithFlags");
  streams_.push_back(Stream{direction, handle});
  return static_cast<StreamId>(streams_.size());
}

void CudaDevice::CopyAllAsync(StreamId stream, const std::vector<CopySpec>& copies) {
  CheckUsable();
  const Stream found = FindStream(stream);
  const bool to_host = found.direction == Direction::kToHost;
  for (const CopySpec& copy : copies) {
    copy.Check();
    const char* data = static_cast<const char*>(to_host ? copy.source : copy.target);
    const size_t bytes = to_host ? copy.SourceExtentBytes() : copy.TargetExtentBytes();
    MEMO_REQUIRE(InvalidArgument, Owns(data) && Owns(data + bytes - 1))
        << "copy " << (to_host ? "from" : "to") << " device: " << FormatBytes(bytes) << " at "
        << static_cast<const void*>(data) << " are not memory of CUDA device " << ordinal();
  }
  const auto direction = static_cast<size_t>(found.direction);
  const CudaGuard guard(calls_.get());
  CudaEventRef begin = timed_events_->Record(found.handle);
  for (const CopySpec& copy : copies) {
    CopyRows(copy.Joined(), found);
    links_[direction].CountCopy(copy.Bytes());
  }
  copying_[direction].Add(std::move(begin), timed_events_->Record(found.handle));
}

void CudaDevice::CopyRows(const CopySpec& copy, const Stream& stream) const {
  const auto kind =
      stream.direction == Direction::kToHost ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
  const size_t pitch = std::max(copy.target_pitch_bytes, copy.source_pitch_bytes);
  if (copy.rows > 1 && pitch <= max_pitch_bytes_) {
    calls_->Check(
        cudaMemcpy2DAsync(copy.target, copy.target_pitch_bytes, copy.source,
                          copy.source_pitch_bytes, copy.row_bytes, copy.rows, kind, stream.handle),
        "cudaMemcpy2DAsync", copy.Bytes());
    return;
  }
  // A long sequence's rows lie further apart than CUDA copies at once (2 GiB); there are few.
  for (size_t row = 0; row < copy.rows; ++row) {
    calls_->Check(
        cudaMemcpyAsync(static_cast<char*>(copy.target) + row * copy.target_pitch_bytes,
                        static_cast<const char*>(copy.source) + row * copy.source_pitch_bytes,
                        copy.row_bytes, kind, stream.handle),
        "cudaMemcpyAsync", copy.row_bytes);
  }
}

EventPtr CudaDevice::Record(StreamId stream) {
  CheckUsable();
  const Stream found = FindStream(stream);
  const CudaGuard guard(calls_.get());
  return events_->Record(found.handle);
}

EventPtr CudaDevice::RecordCompute(ComputeStream compute) {
  CheckUsable();
  const CudaGuard guard(calls_.get());
  return events_->Record(Handle(compute));
}

void CudaDevice::StreamWait(StreamId stream, const EventPtr& event) {
  CheckUsable();
  const CudaEvent& waited = Cuda(event);
  if (waited.Done()) return;
  const Stream found = FindStream(stream);
  const CudaGuard guard(calls_.get());
  waited.Block(found.handle);
}

void CudaDevice::ComputeWait(ComputeStream compute, const EventPtr& event) {
  CheckUsable();
  const CudaEvent& waited = Cuda(event);
  if (waited.Done()) return;
  const CudaGuard guard(calls_.get());
  CudaEventRef begin = timed_events_->Record(Handle(compute));
  waited.Block(Handle(compute));
  stalled_.Add(std::move(begin), timed_events_->Record(Handle(compute)));
  std::lock_guard<std::mutex> lock(mutex_);
  ++stalls_;
}

void CudaDevice::HostWait(const EventPtr& event) {
  CheckUsable();
  Cuda(event).Wait();
}

void CudaDevice::Synchronize() {
  CheckUsable();
  std::vector<Stream> streams;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    streams = streams_;
  }
  const CudaGuard guard(calls_.get());
  for (const Stream& stream : streams) {
    calls_->Check(cudaStreamSynchronize(stream.handle), "cudaStreamSynchronize");
  }
  for (CudaStopwatch& watch : copying_) watch.Finish();
}

void CudaDevice::SynchronizeCompute(ComputeStream compute) {
  CheckUsable();
  const CudaGuard guard(calls_.get());
  calls_->Check(cudaStreamSynchronize(Handle(compute)), "cudaStreamSynchronize");
  stalled_.Finish();
}

int CudaDevice::numa_node() const { return pages_->numa_node(); }

size_t CudaDevice::MemoryBytes() const {
  const CudaGuard guard(calls_.get());
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  calls_->Check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  return total_bytes;
}

bool CudaDevice::Owns(const void* data) const {
  if (data == nullptr) return false;
  const CudaGuard guard(calls_.get());
  cudaPointerAttributes attributes = {};
  calls_->Check(cudaPointerGetAttributes(&attributes, data), "cudaPointerGetAttributes");
  return attributes.type == cudaMemoryTypeDevice && attributes.device == ordinal();
}

CudaCounters CudaDevice::Counters() const {
  CheckUsable();
  CudaCounters counters;
  counters.to_host = links_[0].Counters();
  counters.to_host.busy_s = copying_[0].Seconds();
  counters.to_device = links_[1].Counters();
  counters.to_device.busy_s = copying_[1].Seconds();
  counters.stall_s = stalled_.Seconds();
  counters.host = host_pool_->Counters();
  std::lock_guard<std::mutex> lock(mutex_);
  counters.device = memory_;
  counters.stalls = stalls_;
  return counters;
}

void CudaDevice::ResetPeak() {
  host_pool_->ResetPeak();
  std::lock_guard<std::mutex> lock(mutex_);
  memory_.peak_bytes = memory_.used_bytes;
}

void CudaDevice::ResetCounters() {
  for (Link& link : links_) link.ResetCounters(Now());
  for (CudaStopwatch& watch : copying_) watch.Reset();
  stalled_.Reset();
  std::lock_guard<std::mutex> lock(mutex_);
  stalls_ = 0;
}

CudaDevice::Stream CudaDevice::FindStream(StreamId stream) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const int last = static_cast<int>(streams_.size());
  MEMO_REQUIRE(InvalidArgument, stream > 0 && stream <= last)
      << "stream " << stream << " is not a copy stream of CUDA device " << ordinal()
      << ", which has 1.." << last;
  return streams_[static_cast<size_t>(stream) - 1];
}

}  // namespace memo
