#include "cuda/cuda_allocator.h"

#include <algorithm>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"

namespace memo {
namespace {

constexpr size_t kLargestBytes = PTRDIFF_MAX / 2;  // can be rounded and added up

}  // namespace

CudaAllocator::CudaAllocator(int ordinal, size_t smallest_chunk_bytes)
    : smallest_chunk_bytes_(RoundUp(smallest_chunk_bytes, kBlockBytes)),
      calls_(std::make_unique<CudaCalls>(ordinal)),
      events_(std::make_unique<CudaEventPool>(calls_.get())) {}

CudaAllocator::~CudaAllocator() {
  if (calls_->InOwner()) return;
  // In a fork CUDA cannot be called.
  for (auto& [data, chunk] : chunks_) static_cast<void>(chunk.release());
  static_cast<void>(events_.release());
}

void* CudaAllocator::Alloc(size_t bytes, cudaStream_t stream) {
  MEMO_REQUIRE(InvalidArgument, bytes > 0 && bytes <= kLargestBytes)
      << "an allocation needs 1 to " << kLargestBytes << " bytes, asked " << bytes;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    SettleDone();
    if (char* data = TakePlanned(bytes, stream)) return data;
    if (char* data = TakeBySize(bytes, stream)) return data;
  }
  return Grow(bytes, stream);
}

char* CudaAllocator::TakePlanned(size_t bytes, cudaStream_t stream) {
  if (planned_ == nullptr || planned_->stream() != stream) return nullptr;
  AddressSpace& space = planned_->space();
  const size_t rounded = RoundUp(bytes, kBlockBytes);
  if (!pending_.empty()) {
    const std::optional<size_t> next = space.NextPlanned(rounded);
    if (next) SettleBehind(stream, planned_->data() + *next, rounded);
  }
  const std::optional<size_t> offset = space.TakePlanned(rounded);
  if (!offset) return nullptr;
  return CountTaken(planned_->data() + *offset, rounded, stream, &counters_.planned_requests);
}

// Chunks at higher addresses are used last, so that they are the first to become idle.
char* CudaAllocator::TakeBySize(size_t bytes, cudaStream_t stream) {
  const size_t rounded = RoundUp(bytes, kBlockBytes);
  for (const auto& [begin, chunk] : chunks_) {
    if (chunk.get() == planned_ || chunk->stream() != stream) continue;
    const std::optional<size_t> offset = chunk->space().Take(rounded);
    if (!offset) continue;
    return CountTaken(chunk->data() + *offset, rounded, stream, &counters_.unplanned_requests);
  }
  return nullptr;
}

char* CudaAllocator::CountTaken(char* data, size_t bytes, cudaStream_t stream, uint64_t* requests) {
  Record(MemoryEventKind::kAlloc, data, bytes, stream);
  ++*requests;
  counters_.allocated_bytes += bytes;
  counters_.allocated_peak_bytes =
      std::max(counters_.allocated_peak_bytes, counters_.allocated_bytes);
  return data;
}

void CudaAllocator::Record(MemoryEventKind kind, const void* data, size_t bytes,
                           cudaStream_t stream) {
  recording_.Add(kind, reinterpret_cast<uintptr_t>(data), bytes,
                 reinterpret_cast<uintptr_t>(stream));
}

void CudaAllocator::StartRecording(cudaStream_t stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  recording_.Start();
  recorded_ = stream;
}

std::vector<MemoryEvent> CudaAllocator::StopRecording() {
  std::lock_guard<std::mutex> lock(mutex_);
  return recording_.Stop();
}

void CudaAllocator::Free(void* data, cudaStream_t stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  CudaChunk* const chunk = FindChunk(data);
  const CudaPendingFrees::Block block{static_cast<char*>(data), LiveBytes(chunk, data)};
  Record(MemoryEventKind::kFree, data, block.bytes, chunk->stream());
  AddUser(data, stream);
  const auto found = users_.find(data);
  if (found == users_.end()) {
    Settle(block);
  } else {
    calls_->CheckUsable();
    const CudaGuard guard(calls_.get());
    CudaPendingFrees::Users users;
    for (const cudaStream_t user : found->second) {
      users.emplace_back(user, events_->Record(user));
    }
    pending_.Add(block, users);
    users_.erase(found);
  }
  counters_.allocated_bytes -= block.bytes;
  ++counters_.frees;
}

void CudaAllocator::RecordStream(void* data, cudaStream_t stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  LiveBytes(FindChunk(data), data);
  AddUser(data, stream);
}

void CudaAllocator::AddUser(const void* data, cudaStream_t stream) {
  if (stream == FindChunk(data)->stream()) return;
  std::vector<cudaStream_t>& users = users_[data];
  if (std::find(users.begin(), users.end(), stream) == users.end()) users.push_back(stream);
}

CudaChunk* CudaAllocator::FindChunk(const void* data) const {
  auto found = chunks_.upper_bound(static_cast<const char*>(data));
  const bool is_ours = found != chunks_.begin() && (--found)->second->Covers(data);
  MEMO_REQUIRE(InvalidArgument, is_ours)
      << data << " is not memory that the allocator of CUDA device " << calls_->ordinal()
      << " has handed out";
  return found->second.get();
}

size_t CudaAllocator::LiveBytes(CudaChunk* chunk, const void* data) const {
  const char* const begin = static_cast<const char*>(data);
  const size_t bytes = pending_.Holds(begin)
                           ? 0
                           : chunk->space().LiveBytes(static_cast<size_t>(begin - chunk->data()));
  MEMO_REQUIRE(InvalidArgument, bytes > 0)
      << "no live allocation of CUDA device " << calls_->ordinal() << " starts at " << data
      << "; it was freed before, or the address points into the middle of one";
  return bytes;
}

// Nobody uses the block any more but its own stream, if anybody does.
void CudaAllocator::Settle(const CudaPendingFrees::Block& block) {
  CudaChunk* const chunk = FindChunk(block.data);
  const size_t freed = chunk->space().Free(static_cast<size_t>(block.data - chunk->data()));
  MEMO_CHECK(freed == block.bytes) << freed << " bytes were freed of " << block.bytes;
}

void CudaAllocator::SettleDone() {
  if (pending_.empty()) return;  // before the look at the process, which costs more than all else
  calls_->CheckUsable();
  while (const std::optional<CudaPendingFrees::Block> block = pending_.TakeDone()) Settle(*block);
}

void CudaAllocator::SettleBehind(cudaStream_t stream, const char* data, size_t bytes) {
  const CudaGuard guard(calls_.get());
  while (const auto block = pending_.TakeBehind(stream, data, bytes)) {
    ++counters_.planned_waits;
    Settle(*block);
  }
}

CudaAllocatorCounters CudaAllocator::Counters() const {
  std::lock_guard<std::mutex> lock(mutex_);
  CudaAllocatorCounters counters = counters_;
  counters.pending_bytes = pending_.bytes();
  counters.pending_frees = pending_.size();
  return counters;
}

void CudaAllocator::ResetPeak() {
  std::lock_guard<std::mutex> lock(mutex_);
  counters_.allocated_peak_bytes = counters_.allocated_bytes;
  counters_.reserved_peak_bytes = counters_.reserved_bytes;
}

void CudaAllocator::SetCap(std::optional<size_t> cap_bytes) {
  MEMO_REQUIRE(InvalidArgument, !cap_bytes || *cap_bytes > 0)
      << "the device cap must be positive, got 0; use None for no cap";
  std::lock_guard<std::mutex> lock(mutex_);
  counters_.cap_bytes = cap_bytes;
}

}  // namespace memo
