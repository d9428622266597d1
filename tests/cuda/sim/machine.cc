#include "sim/machine.h"

#include <algorithm>
#include <utility>

namespace sim {
namespace {

std::unique_ptr<Machine>& Slot() {
  static std::unique_ptr<Machine> machine;
  return machine;
}

}  // namespace

int& CurrentDevice() {
  thread_local int device = 0;
  return device;
}

cudaError_t& LastError() {
  thread_local cudaError_t error = cudaSuccess;
  return error;
}

Machine& Machine::Start(const Options& options) {
  CurrentDevice() = 0;
  LastError() = cudaSuccess;
  Slot().reset();
  Slot().reset(new Machine(options));
  return *Slot();
}

Machine& Machine::Get() { return *Slot(); }

Machine::Machine(const Options& options)
    : options_(options), memory_(options.device_bytes), random_(options.seed) {
  for (int device = 0; device < options_.num_devices; ++device) {
    default_streams_[device] = MakeWorker(device);
  }
}

Machine::~Machine() {
  Lock lock(pulse_.mutex);
  DrainAll(lock);
}

Worker* Machine::MakeWorker(int device) {
  const Actor actor = workers_.size() + 1;
  workers_.push_back(std::make_unique<Worker>(&pulse_, actor, device, random_()));
  return workers_.back().get();
}

cudaError_t Machine::Call(const char* name, const std::function<cudaError_t(Lock&)>& body) {
  Lock lock(pulse_.mutex);
  ++pulse_.calls;
  for (const auto& worker : workers_) worker->Tick();
  const bool fails = ++calls_ == fail_at_;
  if (fails) failed_call_ = name;
  const cudaError_t code = fails ? failure_ : body(lock);
  if (code == cudaErrorInvalidResourceHandle) Report(Kind::kWrongOrder, name);
  if (code != cudaSuccess) LastError() = code;
  return code;
}

void Machine::FailAt(uint64_t call, cudaError_t code) {
  const std::lock_guard<std::mutex> lock(pulse_.mutex);
  fail_at_ = calls_ + call;
  failure_ = code;
}

std::string Machine::FailedCall() {
  const std::lock_guard<std::mutex> lock(pulse_.mutex);
  return failed_call_;
}

uint64_t Machine::NumPins() {
  const std::lock_guard<std::mutex> lock(pulse_.mutex);
  return pins_;
}

size_t Machine::NumEvents() {
  const std::lock_guard<std::mutex> lock(pulse_.mutex);
  return events_.size();
}

uint64_t Machine::NumCalls() const { return calls_; }

void Machine::Report(Kind kind, std::string text) {
  violations_.push_back(Violation{kind, std::move(text)});
}

cudaStream_t Machine::NewStream(int device) {
  const std::lock_guard<std::mutex> lock(pulse_.mutex);
  const auto handle = reinterpret_cast<cudaStream_t>(next_handle_++);
  streams_[handle] = MakeWorker(device);
  ++num_test_streams_;
  return handle;
}

cudaStream_t Machine::NewHostStream(int device) {
  const cudaStream_t handle = NewStream(device);
  const std::lock_guard<std::mutex> lock(pulse_.mutex);
  host_streams_.insert(handle);
  return handle;
}

void Machine::Launch(cudaStream_t stream, Kernel kernel) {
  const std::lock_guard<std::mutex> lock(pulse_.mutex);
  Worker* worker = Find(stream, kernel.what.c_str());
  CheckCurrent(worker->device(), kernel.what.c_str());
  VectorClock& clock = worker->clock();
  clock.Join(host_clock_);
  const Epoch epoch = clock.Tick(worker->actor());
  for (const Range& range : kernel.reads) {
    CheckDeviceSide(range, worker->device(), kernel.what.c_str());
    Touch(range, Access{epoch, kernel.what, false}, clock);
  }
  for (const Range& range : kernel.writes) {
    CheckDeviceSide(range, worker->device(), kernel.what.c_str());
    Touch(range, Access{epoch, kernel.what, true}, clock);
  }
  worker->Add({std::move(kernel.run)});
}

void Machine::TouchOnHost(Range range, bool writes) {
  const std::lock_guard<std::mutex> lock(pulse_.mutex);
  const Epoch epoch = host_clock_.Tick(kHost);
  Touch(range, Access{epoch, writes ? "host write" : "host read", writes}, host_clock_);
}

void Machine::Touch(Range range, const Access& access, const VectorClock& clock) {
  const auto conflict = history_.Note(range, access, clock);
  if (conflict) Report(Kind::kRace, access.what + " is not ordered after " + conflict->what);
}

void Machine::CheckDeviceSide(Range range, int device, const char* what) {
  const Allocation* found = memory_.Find(range);
  if (found == nullptr || (found->live && !memory_.IsLive(range))) {
    Report(Kind::kOutOfBounds, what);
  } else if (!found->live) {
    Report(Kind::kUseAfterFree, what);
  } else if (found->device != device) {
    Report(Kind::kWrongDevice, std::string(what) + ": memory of another device than its stream");
  }
}

void Machine::CheckCurrent(int device, const char* what) {
  if (CurrentDevice() == device) return;
  Report(Kind::kWrongDevice, std::string(what) + " for device " + std::to_string(device) +
                                 " while device " + std::to_string(CurrentDevice()) +
                                 " is current");
}

void Machine::ReleaseOnHost(Range range, const char* what, Lock& lock) {
  const auto conflict =
      history_.Note(range, Access{host_clock_.Tick(kHost), what, true}, host_clock_);
  if (!conflict) return;
  Report(Kind::kRace, std::string(what) + " is not ordered after " + conflict->what);
  DrainAll(lock);  // so that the report is all that happens
}

void Machine::DrainAll(Lock& lock) {
  for (const auto& worker : workers_) Await(worker->Last(), &pulse_, lock);
}

std::vector<Violation> Machine::Finish() {
  Lock lock(pulse_.mutex);
  DrainAll(lock);
  const auto leak = [&](size_t count, const char* what) {
    if (count > 0) Report(Kind::kLeak, std::to_string(count) + " " + what);
  };
  leak(events_.size(), "events");
  leak(streams_.size() - num_test_streams_, "streams");
  leak(memory_.NumLive(), "device allocations");
  leak(memory_.NumPinned(), "pinned host ranges");
  leak(LastError() == cudaSuccess ? 0 : 1, "error that nobody took");
  if (CurrentDevice() != 0) Report(Kind::kWrongDevice, "the current device was not put back");
  return violations_;
}

}  // namespace sim
