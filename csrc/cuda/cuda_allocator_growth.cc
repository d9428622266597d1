// How CudaAllocator gets memory from the device and gives it back, for requests and for steps.
#include <algorithm>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "cuda/cuda_allocator.h"

namespace memo {
namespace {

constexpr size_t kPageBytes = size_t{2} << 20;
constexpr size_t kGrowthShare = 4;  // a new chunk has at least this part of its stream's bytes

}  // namespace

// A large chunk first; when the device has no room, what frees have left; then just what is asked.
char* CudaAllocator::Grow(size_t bytes, cudaStream_t stream) {
  calls_->CheckUsable();
  size_t chunk_bytes = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    chunk_bytes = NextChunkBytes(bytes, stream);
  }
  if (char* data = AllocInNewChunk(chunk_bytes, bytes, stream)) return data;
  if (char* data = AllocInPending(bytes, stream)) return data;
  ReleaseIdle();
  if (char* data = AllocInNewChunk(RoundUp(bytes, kBlockBytes), bytes, stream)) return data;
  if (char* data = AllocInPlanned(bytes, stream)) return data;
  Refuse(bytes);
}

// Chunks grow with what their stream has, so that there are few of them.
size_t CudaAllocator::NextChunkBytes(size_t bytes, cudaStream_t stream) const {
  size_t stream_bytes = 0;
  for (const auto& [data, chunk] : chunks_) {
    if (chunk.get() != planned_ && chunk->stream() == stream) stream_bytes += chunk->bytes();
  }
  const size_t wanted = std::max(smallest_chunk_bytes_, stream_bytes / kGrowthShare);
  return wanted > bytes ? RoundUp(wanted, kBlockBytes) : RoundUp(bytes, kPageBytes);
}

char* CudaAllocator::AllocInNewChunk(size_t chunk_bytes, size_t bytes, cudaStream_t stream) {
  std::unique_ptr<CudaChunk> chunk = MakeChunk(chunk_bytes, stream);
  if (chunk == nullptr) return nullptr;
  std::lock_guard<std::mutex> lock(mutex_);
  const char* const begin = chunk->data();
  chunks_.emplace(begin, std::move(chunk));
  return TakeBySize(bytes, stream);
}

// Null if the device or the cap has no room.
std::unique_ptr<CudaChunk> CudaAllocator::MakeChunk(size_t bytes, cudaStream_t stream) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t reserved = counters_.reserved_bytes;
    const size_t cap = counters_.cap_bytes.value_or(SIZE_MAX);
    if (reserved > cap || bytes > cap - reserved) return nullptr;
    counters_.reserved_bytes += bytes;  // now, for those that look at the cap meanwhile
  }
  const CudaGuard guard(calls_.get());
  void* data = nullptr;
  const cudaError_t code = cudaMalloc(&data, bytes);
  std::lock_guard<std::mutex> lock(mutex_);
  if (code != cudaSuccess) {
    counters_.reserved_bytes -= bytes;
    if (code != cudaErrorMemoryAllocation) calls_->Check(code, "cudaMalloc", bytes);
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  ++counters_.device_mallocs;
  counters_.reserved_peak_bytes = std::max(counters_.reserved_peak_bytes, counters_.reserved_bytes);
  return std::make_unique<CudaChunk>(calls_.get(), static_cast<char*>(data), bytes, stream);
}

char* CudaAllocator::AllocInPending(size_t bytes, cudaStream_t stream) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++counters_.retries;
  }
  WaitForPending();
  std::lock_guard<std::mutex> lock(mutex_);
  return TakeBySize(bytes, stream);
}

void CudaAllocator::WaitForPending() {
  std::vector<CudaPendingFrees::EventRef> events;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    events = pending_.Events();
  }
  for (const auto& event : events) event->Wait();
  std::lock_guard<std::mutex> lock(mutex_);
  SettleDone();
}

// The planned range is not worth a refusal: the step goes on without it.
char* CudaAllocator::AllocInPlanned(size_t bytes, cudaStream_t stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (planned_ == nullptr || planned_->stream() != stream) return nullptr;
  planned_->space().GiveUpStep();
  given_up_ = planned_->space().EndStep();
  planned_ = nullptr;
  return TakeBySize(bytes, stream);
}

void CudaAllocator::ReleaseIdle() {
  calls_->CheckUsable();
  WaitForPending();
  std::vector<std::unique_ptr<CudaChunk>> idle;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    idle = TakeIdle();
  }
  GiveBack(std::move(idle));
}

std::vector<std::unique_ptr<CudaChunk>> CudaAllocator::TakeIdle() {
  std::vector<std::unique_ptr<CudaChunk>> idle;
  for (auto chunk = chunks_.begin(); chunk != chunks_.end();) {
    if (!chunk->second->Idle()) {
      ++chunk;
      continue;
    }
    if (chunk->second.get() == planned_) planned_ = nullptr;
    idle.push_back(std::move(chunk->second));
    chunk = chunks_.erase(chunk);
  }
  return idle;
}

// Idle is what the host is done with; its stream may still be at work there.
void CudaAllocator::GiveBack(std::vector<std::unique_ptr<CudaChunk>> chunks) {
  const CudaGuard guard(calls_.get());
  for (std::unique_ptr<CudaChunk>& chunk : chunks) {
    events_->Record(chunk->stream())->Wait();
    const size_t bytes = chunk->bytes();
    chunk.reset();
    std::lock_guard<std::mutex> lock(mutex_);
    counters_.reserved_bytes -= bytes;
    ++counters_.device_frees;
  }
}

void CudaAllocator::Refuse(size_t bytes) {
  const CudaGuard guard(calls_.get());
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  calls_->Check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  std::lock_guard<std::mutex> lock(mutex_);
  ++counters_.refusals;
  const size_t cap = counters_.cap_bytes.value_or(total_bytes);
  Message message;
  message << "device memory exceeded: asked " << FormatBytes(bytes) << ", used "
          << FormatBytes(counters_.allocated_bytes) << " of "
          << FormatBytes(counters_.reserved_bytes) << " reserved, cap " << FormatBytes(cap)
          << "; CUDA device " << calls_->ordinal() << " has " << FormatBytes(free_bytes) << " of "
          << FormatBytes(total_bytes)
          << " left; swap or recompute more token tiles, or use a shorter sequence";
  throw DeviceMemoryExceeded(message.Text());
}

bool CudaAllocator::BeginStep(std::shared_ptr<const StepLayout> layout, cudaStream_t stream) {
  calls_->CheckUsable();
  MEMO_REQUIRE(InvalidArgument, layout->alignment() % kBlockBytes == 0)
      << "a layout aligned to " << layout->alignment() << " bytes cannot serve a GPU, whose "
      << "addresses are multiples of " << kBlockBytes;
  std::vector<std::unique_ptr<CudaChunk>> outgrown;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    given_up_.reset();
    SettleDone();
    if (ReadyForStep(stream) && planned_->space().BeginStep(layout, ServedThreads::kAll)) {
      return true;
    }
    planned_ = nullptr;
    outgrown = TakeIdle();
  }
  GiveBack(std::move(outgrown));
  std::unique_ptr<CudaChunk> chunk =
      MakeChunk(RoundUp(std::max<size_t>(layout->peak_bytes(), 1), kPageBytes), stream);
  if (chunk == nullptr) return false;
  std::lock_guard<std::mutex> lock(mutex_);
  if (planned_ != nullptr) planned_->space().EndStep();  // of another thread, meanwhile
  const char* const begin = chunk->data();
  planned_ = chunks_.emplace(begin, std::move(chunk)).first->second.get();
  return planned_->space().BeginStep(std::move(layout), ServedThreads::kAll);
}

// Whether the planned chunk can serve a step of `stream`: what it still waits for, `stream` does.
bool CudaAllocator::ReadyForStep(cudaStream_t stream) {
  if (planned_ == nullptr) return false;
  planned_->space().EndStep();
  SettleBehind(planned_->stream(), planned_->data(), planned_->bytes());
  if (planned_->stream() == stream) return true;
  if (!planned_->Idle()) return false;
  const CudaGuard guard(calls_.get());
  events_->Record(planned_->stream())->Block(stream);
  planned_->set_stream(stream);
  return true;
}

void CudaAllocator::Mark(uint64_t value) {
  std::lock_guard<std::mutex> lock(mutex_);
  recording_.Add(MemoryEventKind::kMark, value, 0, reinterpret_cast<uintptr_t>(recorded_));
  if (planned_ != nullptr) planned_->space().Mark(value);
}

std::optional<ReplayCounts> CudaAllocator::EndStep() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (planned_ != nullptr) return planned_->space().EndStep();
  return std::exchange(given_up_, std::nullopt);
}

}  // namespace memo
