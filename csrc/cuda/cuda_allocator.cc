#include "cuda/cuda_allocator.h"

#include <algorithm>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "memory/address_space.h"

namespace memo {
namespace {

constexpr size_t kLargestBytes = PTRDIFF_MAX / 2;  // can be rounded and added up
// The granularity in which drivers map device memory.
constexpr size_t kPageBytes = size_t{2} << 20;
constexpr size_t kGrowthShare = 4;  // a new chunk has at least this part of its stream's bytes

}  // namespace

// A piece of device memory got by one cudaMalloc, and which of its addresses are in use.
//
// All that lives in it was asked for on one stream, so that an address may be handed out again as
// soon as it is free: what the stream does with it later comes after what it did before.
class CudaAllocator::Chunk {
 public:
  // Takes over `data`, `bytes` of device memory.
  Chunk(CudaCalls* calls, char* data, size_t bytes, cudaStream_t stream)
      : calls_(calls), data_(data), space_(bytes), stream_(stream) {}
  // Gives the memory back. All work on it must be over.
  ~Chunk() {
    const CudaGuard guard(calls_, std::nothrow);
    calls_->Keep(cudaFree(data_), "cudaFree");
  }
  Chunk(const Chunk&) = delete;
  Chunk& operator=(const Chunk&) = delete;

  char* data() const { return data_; }
  size_t bytes() const { return space_.limit_bytes(); }
  AddressSpace& space() { return space_; }
  cudaStream_t stream() const { return stream_; }
  // For a chunk in which nothing lives, when `stream` waits for all that the one before was given.
  void set_stream(cudaStream_t stream) { stream_ = stream; }

  bool Covers(const void* data) const {
    const auto begin = reinterpret_cast<uintptr_t>(data_);
    const auto address = reinterpret_cast<uintptr_t>(data);
    return address >= begin && address - begin < bytes();
  }
  // Nothing lives in it, and no step is under way.
  bool Idle() const { return space_.counters().live_allocations == 0 && !space_.in_step(); }

 private:
  CudaCalls* const calls_;
  char* const data_;
  AddressSpace space_;
  cudaStream_t stream_;
};

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
  Record(MemoryEvent::Kind::kAlloc, data, bytes, stream);
  ++*requests;
  counters_.allocated_bytes += bytes;
  counters_.allocated_peak_bytes =
      std::max(counters_.allocated_peak_bytes, counters_.allocated_bytes);
  return data;
}

void CudaAllocator::Record(MemoryEvent::Kind kind, const void* data, size_t bytes,
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
  Chunk* const chunk = FindChunk(data);
  const CudaPendingFrees::Block block{static_cast<char*>(data), LiveBytes(chunk, data)};
  Record(MemoryEvent::Kind::kFree, data, block.bytes, chunk->stream());
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

CudaAllocator::Chunk* CudaAllocator::FindChunk(const void* data) const {
  auto found = chunks_.upper_bound(static_cast<const char*>(data));
  const bool is_ours = found != chunks_.begin() && (--found)->second->Covers(data);
  MEMO_REQUIRE(InvalidArgument, is_ours)
      << data << " is not memory that the allocator of CUDA device " << calls_->ordinal()
      << " has handed out";
  return found->second.get();
}

size_t CudaAllocator::LiveBytes(Chunk* chunk, const void* data) const {
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
  Chunk* const chunk = FindChunk(block.data);
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
  std::unique_ptr<Chunk> chunk = MakeChunk(chunk_bytes, stream);
  if (chunk == nullptr) return nullptr;
  std::lock_guard<std::mutex> lock(mutex_);
  const char* const begin = chunk->data();
  chunks_.emplace(begin, std::move(chunk));
  // Not always in the new chunk, and perhaps nowhere: other threads were here meanwhile.
  return TakeBySize(bytes, stream);
}

// Null if the device or the cap has no room.
std::unique_ptr<CudaAllocator::Chunk> CudaAllocator::MakeChunk(size_t bytes, cudaStream_t stream) {
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
    // The runtime would report the refusal once more to whoever asks next.
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  ++counters_.device_mallocs;
  counters_.reserved_peak_bytes = std::max(counters_.reserved_peak_bytes, counters_.reserved_bytes);
  return std::make_unique<Chunk>(calls_.get(), static_cast<char*>(data), bytes, stream);
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
  std::vector<CudaEventRef> events;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    events = pending_.Events();
  }
  for (const auto& event : events) event->Wait();  // the host, and so without the lock
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
  std::vector<std::unique_ptr<Chunk>> idle;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    idle = TakeIdle();
  }
  GiveBack(std::move(idle));
}

std::vector<std::unique_ptr<CudaAllocator::Chunk>> CudaAllocator::TakeIdle() {
  std::vector<std::unique_ptr<Chunk>> idle;
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
void CudaAllocator::GiveBack(std::vector<std::unique_ptr<Chunk>> chunks) {
  const CudaGuard guard(calls_.get());
  for (std::unique_ptr<Chunk>& chunk : chunks) {
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
  std::vector<std::unique_ptr<Chunk>> outgrown;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    given_up_.reset();
    SettleDone();
    if (ReadyForStep(stream) && planned_->space().BeginStep(layout, Replay::ServedThreads::kAll)) {
      return true;
    }
    planned_ = nullptr;
    outgrown = TakeIdle();
  }
  GiveBack(std::move(outgrown));
  std::unique_ptr<Chunk> chunk =
      MakeChunk(RoundUp(std::max<size_t>(layout->peak_bytes(), 1), kPageBytes), stream);
  if (chunk == nullptr) return false;
  std::lock_guard<std::mutex> lock(mutex_);
  if (planned_ != nullptr) planned_->space().EndStep();  // of another thread, meanwhile
  const char* const begin = chunk->data();
  planned_ = chunks_.emplace(begin, std::move(chunk)).first->second.get();
  return planned_->space().BeginStep(std::move(layout), Replay::ServedThreads::kAll);
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
  recording_.Add(MemoryEvent::Kind::kMark, value, 0, reinterpret_cast<uintptr_t>(recorded_));
  if (planned_ != nullptr) planned_->space().Mark(value);
}

std::optional<ReplayCounts> CudaAllocator::EndStep() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (planned_ != nullptr) return planned_->space().EndStep();
  return std::exchange(given_up_, std::nullopt);
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

CudaAllocators& CudaAllocators::OfProcess() {
  // Behind a pointer: a static object would be destroyed at the end of the process.
  static CudaAllocators* const all = std::make_unique<CudaAllocators>().release();
  return *all;
}

CudaAllocator& CudaAllocators::Of(int ordinal) {
  MEMO_REQUIRE(InvalidArgument, 0 <= ordinal && ordinal < kMostDevices)
      << "there is no CUDA device " << ordinal << "; devices are 0 to " << kMostDevices - 1;
  Slot& slot = slots_[static_cast<size_t>(ordinal)];
  std::call_once(slot.made, [&] { slot.allocator = std::make_unique<CudaAllocator>(ordinal); });
  return *slot.allocator;
}

CudaAllocator& CudaAllocators::Owning(const void* data) {
  cudaPointerAttributes attributes = {};
  CudaCalls(0).Check(cudaPointerGetAttributes(&attributes, data), "cudaPointerGetAttributes");
  MEMO_REQUIRE(InvalidArgument, attributes.type == cudaMemoryTypeDevice)
      << data << " is not memory of a CUDA device";
  return Of(attributes.device);
}

std::string CudaAllocators::LastError() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return last_error_;
}

void CudaAllocators::KeepError(const char* text) {
  std::lock_guard<std::mutex> lock(mutex_);
  last_error_ = text;
}

}  // namespace memo
