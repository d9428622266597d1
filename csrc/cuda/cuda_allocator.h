// Device memory for a tensor library: planned addresses in steps with a layout, chunks for the
// rest.
#ifndef MEMO_CUDA_CUDA_ALLOCATOR_H_
#define MEMO_CUDA_CUDA_ALLOCATOR_H_

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/cuda_calls.h"
#include "cuda/cuda_events.h"
#include "cuda/cuda_pending_frees.h"
#include "memory/recording.h"
#include "memory/replay.h"
#include "memory/step_layout.h"

namespace memo {

// In the spirit of torch.cuda.memory_stats. Peaks count from ResetPeak, all else from the start.
struct CudaAllocatorCounters {
  size_t allocated_bytes = 0;  // handed out and not freed, as rounded
  size_t allocated_peak_bytes = 0;
  size_t reserved_bytes = 0;  // got from the device
  size_t reserved_peak_bytes = 0;
  size_t pending_bytes = 0;  // freed, and other streams may still work on it
  size_t pending_frees = 0;
  uint64_t planned_requests = 0;    // served at their planned address
  uint64_t unplanned_requests = 0;  // served by size
  uint64_t frees = 0;
  uint64_t planned_waits = 0;   // blocks for whose events a planned address made its stream wait
  uint64_t device_mallocs = 0;  // calls of cudaMalloc that gave memory; of cudaFree
  uint64_t device_frees = 0;
  uint64_t retries = 0;             // the device or the cap refused, and pending and idle memory
  uint64_t refusals = 0;            // was given back first; even that was not enough
  std::optional<size_t> cap_bytes;  // as set; nullopt: no cap
};

// One GPU's memory, stream-ordered. Any method, any thread.
//
// A block belongs to the stream that it was asked for on. Freed, it may be handed out on that
// stream at once, because the stream's later work comes after its earlier work. Other streams that
// use it are named by RecordStream: then the block is handed out again when events recorded on
// them at its free are done. A chunk serves one stream, so no address goes from one to another.
//
// While a step with a layout runs, the requests of its stream get their planned addresses in a
// chunk of their own, which is kept between steps. Here an address that a copy may still read is
// handed out nevertheless, after the stream was told to wait for the copy: whether a step departs
// from its layout must not hang on how fast copies are.
//
// The lock is never held while the host waits for the device. In a fork whatever needs CUDA throws
// ForkedProcess.
class CudaAllocator {
 public:
  static constexpr size_t kBlockBytes = 512;  // as tensor libraries expect of addresses on a GPU
  static constexpr size_t kSmallestChunkBytes = size_t{64} << 20;

  explicit CudaAllocator(int ordinal, size_t smallest_chunk_bytes = kSmallestChunkBytes);
  // Gives everything back; the device's work on it must be over.
  ~CudaAllocator();
  CudaAllocator(const CudaAllocator&) = delete;
  CudaAllocator& operator=(const CudaAllocator&) = delete;

  // `bytes` > 0, for work on `stream`. Throws InvalidArgument, CudaError, and DeviceMemoryExceeded
  // with asked, used and cap in the message.
  void* Alloc(size_t bytes, cudaStream_t stream);
  // Gives back what Alloc returned. `stream`: where it was last used, beside those of RecordStream.
  // Throws InvalidArgument for any other address, also for one that was freed before.
  void Free(void* data, cudaStream_t stream);
  // `stream` works on the block as well, up to what it has been given when the block is freed.
  void RecordStream(void* data, cudaStream_t stream);

  // Records every allocation, free and mark from now on. Sources are streams: `stream` is number 0,
  // which marks belong to; offsets are addresses.
  void StartRecording(cudaStream_t stream);
  std::vector<MemoryEvent> StopRecording();

  // Serves the next step of `stream` by `layout`, whichever thread asks, until EndStep. False, and
  // nothing is planned, if the device has no room. A step under way ends. Throws InvalidArgument
  // for a layout that is not aligned to kBlockBytes.
  bool BeginStep(std::shared_ptr<const StepLayout> layout, cudaStream_t stream);
  // The step under way, recorded or served, has come to a place.
  void Mark(uint64_t value);
  // Ends the step under way; what it did, or nothing if none has begun.
  std::optional<ReplayCounts> EndStep();

  // Limits reserved bytes from now on; nullopt: no limit. Throws InvalidArgument for 0.
  void SetCap(std::optional<size_t> cap_bytes);
  // Gives chunks in which nothing lives back to the device, the planned one between steps too.
  // Waits for the work on them.
  void ReleaseIdle();

  CudaAllocatorCounters Counters() const;
  void ResetPeak();

 private:
  class Chunk;
  using Chunks = std::map<const char*, std::unique_ptr<Chunk>>;  // by address

  // With the lock held.
  char* TakePlanned(size_t bytes, cudaStream_t stream);
  char* TakeBySize(size_t bytes, cudaStream_t stream);
  char* CountTaken(char* data, size_t bytes, cudaStream_t stream, uint64_t* requests);
  void Record(MemoryEvent::Kind kind, const void* data, size_t bytes, cudaStream_t stream);
  Chunk* FindChunk(const void* data) const;
  size_t LiveBytes(Chunk* chunk, const void* data) const;
  void AddUser(const void* data, cudaStream_t stream);
  void Settle(const CudaPendingFrees::Block& block);
  void SettleDone();
  void SettleBehind(cudaStream_t stream, const char* data, size_t bytes);
  bool ReadyForStep(cudaStream_t stream);
  std::vector<std::unique_ptr<Chunk>> TakeIdle();
  size_t NextChunkBytes(size_t bytes, cudaStream_t stream) const;

  // Without the lock.
  char* Grow(size_t bytes, cudaStream_t stream);
  char* AllocInNewChunk(size_t chunk_bytes, size_t bytes, cudaStream_t stream);
  std::unique_ptr<Chunk> MakeChunk(size_t bytes, cudaStream_t stream);
  char* AllocInPending(size_t bytes, cudaStream_t stream);
  char* AllocInPlanned(size_t bytes, cudaStream_t stream);
  void WaitForPending();
  void GiveBack(std::vector<std::unique_ptr<Chunk>> chunks);
  [[noreturn]] void Refuse(size_t bytes);

  const size_t smallest_chunk_bytes_;
  // Behind pointers, so that a fork can let them go without a call to CUDA.
  std::unique_ptr<CudaCalls> calls_;
  std::unique_ptr<CudaEventPool> events_;
  mutable std::mutex mutex_;  // guards what follows
  Chunks chunks_;
  Chunk* planned_ = nullptr;              // of chunks_, or null
  std::optional<ReplayCounts> given_up_;  // of a step that lost its chunk
  std::unordered_map<const void*, std::vector<cudaStream_t>> users_;  // of live blocks
  CudaPendingFrees pending_;
  Recording recording_;
  cudaStream_t recorded_ = nullptr;  // the stream that StartRecording was given
  CudaAllocatorCounters counters_;
};

// The allocators of all GPUs of the process, for callers that can pass no object.
// Any thread may call any method.
class CudaAllocators {
 public:
  // Global because a tensor library's hooks are plain functions. Never destroyed: CUDA may be gone
  // before the process is.
  static CudaAllocators& OfProcess();

  // The allocator of GPU `ordinal`, made when it is first asked for. Throws InvalidArgument.
  CudaAllocator& Of(int ordinal);
  // That of the GPU whose memory `data` is. Throws InvalidArgument if it is none's.
  CudaAllocator& Owning(const void* data);

  // What went wrong last where nobody could be told; empty if nothing has.
  std::string LastError() const;
  void KeepError(const char* text);

 private:
  static constexpr int kMostDevices = 64;

  struct Slot {
    std::once_flag made;
    std::unique_ptr<CudaAllocator> allocator;
  };

  std::array<Slot, kMostDevices> slots_;
  mutable std::mutex mutex_;  // guards what follows
  std::string last_error_;
};

}  // namespace memo

#endif  // MEMO_CUDA_CUDA_ALLOCATOR_H_
