// The bodies of the simulated runtime's functions.
#include <algorithm>
#include <cstring>
#include <utility>

#include "copies/clock.h"
#include "sim/machine.h"

namespace sim {

Worker* Machine::Find(cudaStream_t stream, const char* user) {
  if (stream == nullptr) return default_streams_.at(CurrentDevice());
  const auto found = streams_.find(stream);
  if (found != streams_.end()) return found->second;
  Report(Kind::kWrongOrder, std::string(user) + ": no such stream");
  return nullptr;
}

EventState* Machine::Find(cudaEvent_t event, const char* user) {
  const auto found = events_.find(event);
  if (found != events_.end()) return &found->second;
  Report(Kind::kWrongOrder, std::string(user) + ": no such event");
  return nullptr;
}

cudaError_t Machine::StreamCreate(cudaStream_t* stream, unsigned int flags) {
  if (flags != cudaStreamNonBlocking) Report(Kind::kWrongOrder, "a stream that blocks");
  *stream = reinterpret_cast<cudaStream_t>(next_handle_++);
  streams_[*stream] = MakeWorker(CurrentDevice());
  return cudaSuccess;
}

cudaError_t Machine::StreamDestroy(cudaStream_t stream) {
  const Worker* worker = Find(stream, "cudaStreamDestroy");
  if (worker == nullptr) return cudaErrorInvalidResourceHandle;
  CheckCurrent(worker->device(), "cudaStreamDestroy");
  streams_.erase(stream);
  return cudaSuccess;
}

cudaError_t Machine::StreamSynchronize(cudaStream_t stream, Lock& lock) {
  Worker* worker = Find(stream, "cudaStreamSynchronize");
  if (worker == nullptr) return cudaErrorInvalidResourceHandle;
  const VectorClock clock = worker->clock();
  Await(worker->Last(), &pulse_, lock);
  host_clock_.Join(clock);
  return cudaSuccess;
}

cudaError_t Machine::StreamWait(cudaStream_t stream, cudaEvent_t event, Lock& lock) {
  Worker* worker = Find(stream, "cudaStreamWaitEvent");
  const EventState* state = Find(event, "cudaStreamWaitEvent");
  if (worker == nullptr || state == nullptr) return cudaErrorInvalidResourceHandle;
  CheckCurrent(worker->device(), "cudaStreamWaitEvent");
  if (!state->recorded) Report(Kind::kWrongOrder, "cudaStreamWaitEvent: event never recorded");
  if (host_streams_.count(stream) > 0) return EventSynchronize(event, lock);
  worker->clock().Join(state->clock);
  if (state->ticket.worker != nullptr) worker->AddWait(state->ticket);
  return cudaSuccess;
}

cudaError_t Machine::EventCreate(cudaEvent_t* event, unsigned int flags) {
  *event = reinterpret_cast<cudaEvent_t>(next_handle_++);
  events_[*event].timed = flags == cudaEventDefault;
  events_[*event].device = CurrentDevice();
  return cudaSuccess;
}

cudaError_t Machine::EventDestroy(cudaEvent_t event) {
  if (events_.erase(event) == 0) return cudaErrorInvalidResourceHandle;
  return cudaSuccess;
}

cudaError_t Machine::EventRecord(cudaEvent_t event, cudaStream_t stream) {
  Worker* worker = Find(stream, "cudaEventRecord");
  EventState* state = Find(event, "cudaEventRecord");
  if (worker == nullptr || state == nullptr) return cudaErrorInvalidResourceHandle;
  CheckCurrent(worker->device(), "cudaEventRecord");
  if (state->device != worker->device()) return cudaErrorInvalidResourceHandle;
  state->recorded = true;
  state->recorded_at_s = memo::NowSeconds();
  state->clock = worker->clock();
  state->clock.Join(host_clock_);
  state->ticket = worker->Last();
  return cudaSuccess;
}

cudaError_t Machine::EventQuery(cudaEvent_t event) {
  const EventState* state = Find(event, "cudaEventQuery");
  if (state == nullptr) return cudaErrorInvalidResourceHandle;
  if (!state->recorded) Report(Kind::kWrongOrder, "cudaEventQuery: event never recorded");
  const Worker* worker = state->ticket.worker;
  if (worker == nullptr) return cudaSuccess;
  // Nothing says how soon the host learns of it.
  if (!worker->Done(state->ticket) || random_() % 4 == 0) return cudaErrorNotReady;
  host_clock_.Join(state->clock);
  return cudaSuccess;
}

cudaError_t Machine::EventElapsed(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  double at_s[2];
  for (int i = 0; i < 2; ++i) {
    const EventState* state = Find(i == 0 ? begin : end, "cudaEventElapsedTime");
    const bool usable = state != nullptr && state->recorded && state->timed;
    if (!usable) return cudaErrorInvalidResourceHandle;
    const Worker* worker = state->ticket.worker;
    if (worker != nullptr && !worker->Done(state->ticket)) return cudaErrorNotReady;
    const double done_at_s = worker == nullptr ? 0 : worker->DoneAt(state->ticket);
    at_s[i] = std::max(state->recorded_at_s, done_at_s);
  }
  *milliseconds = static_cast<float>((at_s[1] - at_s[0]) * 1e3);
  return cudaSuccess;
}

cudaError_t Machine::EventSynchronize(cudaEvent_t event, Lock& lock) {
  const EventState* state = Find(event, "cudaEventSynchronize");
  if (state == nullptr) return cudaErrorInvalidResourceHandle;
  if (!state->recorded) Report(Kind::kWrongOrder, "cudaEventSynchronize: event never recorded");
  const EventState copy = *state;
  Await(copy.ticket, &pulse_, lock);
  host_clock_.Join(copy.clock);
  return cudaSuccess;
}

cudaError_t Machine::Malloc(void** data, size_t bytes) {
  *data = memory_.Alloc(bytes, CurrentDevice());
  if (*data == nullptr) return cudaErrorMemoryAllocation;
  history_.Forget(RangeOf(*data, bytes));
  return cudaSuccess;
}

cudaError_t Machine::Free(void* data, Lock& lock) {
  const Allocation* found = memory_.Find(RangeOf(data, 1));
  if (found == nullptr || !found->live) {
    Report(Kind::kUseAfterFree, "cudaFree: no live allocation starts there");
    return cudaErrorInvalidValue;
  }
  CheckCurrent(found->device, "cudaFree");
  ReleaseOnHost(RangeOf(data, found->bytes), "cudaFree", lock);
  return memory_.Free(data) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t Machine::HostRegister(void* data, size_t bytes) {
  if (memory_.NumPinnedBytes() + bytes > options_.pinned_bytes) return cudaErrorMemoryAllocation;
  if (!memory_.Pin(data, bytes)) return cudaErrorHostMemoryAlreadyRegistered;
  ++pins_;
  history_.Forget(RangeOf(data, bytes));
  return cudaSuccess;
}

cudaError_t Machine::HostUnregister(void* data, Lock& lock) {
  const Range range = memory_.Unpin(data);
  if (range.end == 0) return cudaErrorHostMemoryNotRegistered;
  ReleaseOnHost(range, "cudaHostUnregister", lock);
  return cudaSuccess;
}

cudaError_t Machine::StartCopy(const Copy& copy, cudaStream_t stream) {
  const char* what = copy.to_host ? "copy to host" : "copy to device";
  Worker* worker = Find(stream, what);
  if (worker == nullptr) return cudaErrorInvalidResourceHandle;
  CheckCurrent(worker->device(), what);
  const size_t pitch = std::max(copy.target_pitch_bytes, copy.source_pitch_bytes);
  if (copy.rows > 1 && pitch > options_.max_pitch_bytes) return cudaErrorInvalidPitchValue;
  VectorClock& clock = worker->clock();
  clock.Join(host_clock_);
  const Epoch epoch = clock.Tick(worker->actor());
  for (size_t row = 0; row < copy.rows; ++row) {
    const Range target =
        RangeOf(static_cast<char*>(copy.target) + row * copy.target_pitch_bytes, copy.row_bytes);
    const Range source = RangeOf(
        static_cast<const char*>(copy.source) + row * copy.source_pitch_bytes, copy.row_bytes);
    CheckDeviceSide(copy.to_host ? source : target, worker->device(), what);
    if (!memory_.IsPinned(copy.to_host ? target : source)) Report(Kind::kUnpinned, what);
    Touch(source, Access{epoch, std::string(what) + " (reads)", false}, clock);
    Touch(target, Access{epoch, std::string(what) + " (writes)", true}, clock);
  }
  worker->Add(Cut(copy, worker));
  return cudaSuccess;
}

Pieces Machine::Cut(const Copy& copy, Worker* worker) {
  constexpr size_t kMostCuts = 3;  // of a row
  Pieces pieces;
  for (size_t row = 0; row < copy.rows; ++row) {
    std::vector<size_t> places = {0, copy.row_bytes};
    const size_t cuts = worker->random()() % (kMostCuts + 1);
    for (size_t i = 0; i < cuts; ++i) places.push_back(worker->random()() % copy.row_bytes);
    std::sort(places.begin(), places.end());
    char* target = static_cast<char*>(copy.target) + row * copy.target_pitch_bytes;
    const char* source = static_cast<const char*>(copy.source) + row * copy.source_pitch_bytes;
    for (size_t i = 1; i < places.size(); ++i) {
      const size_t begin = places[i - 1];
      const size_t bytes = places[i] - begin;
      pieces.push_back([=] { std::memcpy(target + begin, source + begin, bytes); });
    }
  }
  std::shuffle(pieces.begin(), pieces.end(), worker->random());
  return pieces;
}

}  // namespace sim
