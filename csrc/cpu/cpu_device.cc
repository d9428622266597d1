#include "cpu/cpu_device.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "base/bytes.h"
#include "base/check.h"

namespace memo {
namespace {

// The compute stream is the caller: whatever it did before recording has been done.
class PastEvent : public Event {
 public:
  bool Done() const override { return true; }
};

}  // namespace

CpuDevice::CpuDevice(size_t reserve_bytes) : owner_(getpid()), arena_(reserve_bytes) {}

CpuDevice::~CpuDevice() {
  if (getpid() != owner_) {
    // In a fork there are no threads to end, and waiting for them would never return.
    for (auto& stream : streams_) static_cast<void>(stream.release());
  }
  for (const auto& stream : streams_) {
    if (stream != nullptr) stream->work.Hurry();
  }
}

StreamId CpuDevice::CreateStream(Direction direction) {
  CheckUsable();
  std::lock_guard<std::mutex> lock(mutex_);
  const StreamId id = static_cast<StreamId>(streams_.size()) + 1;
  streams_.push_back(std::make_unique<Stream>(id, direction, &LinkOf(direction)));
  streams_.back()->work.SetAdversary(adversary_seed_);
  return id;
}

void CpuDevice::CopyAllAsync(StreamId stream, const std::vector<CopySpec>& copies) {
  CheckUsable();
  Stream& found = FindStream(stream);
  const bool to_host = found.direction == Direction::kToHost;
  for (const CopySpec& copy : copies) {
    copy.Check();
    const void* data = to_host ? copy.source : copy.target;
    const size_t bytes = to_host ? copy.SourceExtentBytes() : copy.TargetExtentBytes();
    MEMO_REQUIRE(InvalidArgument, arena_.IsLive(data, bytes))
        << "copy " << (to_host ? "from" : "to") << " device: " << FormatBytes(bytes) << " at "
        << data << " do not lie in one live allocation of the arena";
  }
  found.work.AddCopies(copies);
}

EventPtr CpuDevice::Record(StreamId stream) { return FindStream(stream).work.Record(); }

EventPtr CpuDevice::RecordCompute(ComputeStream) { return std::make_shared<PastEvent>(); }

void CpuDevice::StreamWait(StreamId stream, const EventPtr& event) {
  if (event->Done()) return;
  CheckUsable();
  FindStream(stream).work.AddWait(event);
}

void CpuDevice::ComputeWait(ComputeStream, const EventPtr& event) {
  if (event->Done()) return;
  const double start_s = Now();
  HostWait(event);
  stalls_.Add(Now() - start_s);
}

void CpuDevice::HostWait(const EventPtr& event) {
  if (event->Done()) return;
  CheckUsable();
  CopyStream::WaitFor(*event);  // one of a stream: those of compute are done from the start
}

void CpuDevice::Synchronize() {
  StreamId last;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    last = static_cast<StreamId>(streams_.size());
  }
  for (StreamId stream = 1; stream <= last; ++stream) HostWait(Record(stream));
}

void CpuDevice::SetBandwidth(std::optional<double> to_host, std::optional<double> to_device) {
  Link::CheckLimit(to_host);
  Link::CheckLimit(to_device);
  LinkOf(Direction::kToHost).SetLimit(to_host);
  LinkOf(Direction::kToDevice).SetLimit(to_device);
}

void CpuDevice::SetAdversary(std::optional<uint64_t> seed) {
  std::lock_guard<std::mutex> lock(mutex_);
  adversary_seed_ = seed;
  for (const auto& stream : streams_) stream->work.SetAdversary(seed);
}

void CpuDevice::SetPoison(bool on) {
  arena_.SetPoison(on);
  host_pool_.SetPoison(on);
}

DeviceCounters CpuDevice::Counters() const {
  return DeviceCounters{arena_.Counters(), host_pool_.Counters(), links_[0].Counters(),
                        links_[1].Counters(), stalls_.Read()};
}

void CpuDevice::ResetPeak() {
  arena_.ResetPeak();
  host_pool_.ResetPeak();
}

void CpuDevice::ResetCounters() {
  for (Link& link : links_) link.ResetCounters(Now());
  stalls_.Reset();
}

void CpuDevice::CheckUsable() const {
  const pid_t process = getpid();
  MEMO_REQUIRE(ForkedProcess, process == owner_)
      << "process " << process << " was forked from process " << owner_ << ", which owns the CPU "
      << "device: the copy threads were not forked; start worker processes with the spawn method";
}

CpuDevice::Stream& CpuDevice::FindStream(StreamId stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  const int last = static_cast<int>(streams_.size());
  MEMO_REQUIRE(InvalidArgument, stream > 0 && stream <= last)
      << "stream " << stream << " is not a copy stream of this device, which has 1.." << last;
  return *streams_[static_cast<size_t>(stream) - 1];
}

void* CpuDevice::AllocForHook(void* arena, size_t bytes, char* error, size_t error_bytes) noexcept {
  try {
    return static_cast<Arena*>(arena)->Alloc(bytes);
  } catch (const std::exception& refused) {
    std::snprintf(error, error_bytes, "%s", refused.what());
    return nullptr;
  }
}

void CpuDevice::FreeForHook(void* arena, void* data) noexcept {
  try {
    static_cast<Arena*>(arena)->Free(data);
  } catch (const std::exception& misuse) {
    std::fprintf(stderr, "memo_train: %s\n", misuse.what());
    std::abort();
  }
}

}  // namespace memo
