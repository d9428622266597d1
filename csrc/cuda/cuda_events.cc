#include "cuda/cuda_events.h"

namespace memo {

CudaEvent::CudaEvent(CudaEventPool* pool) : pool_(pool), event_(pool->Take()) {}

CudaEvent::~CudaEvent() { pool_->GiveBack(event_); }

bool CudaEvent::Done() const {
  if (done_.load(std::memory_order_acquire)) return true;
  const cudaError_t code = cudaEventQuery(event_);
  if (code == cudaErrorNotReady) {
    // Not a failure, but the runtime remembers it as the last one.
    static_cast<void>(cudaGetLastError());
    return false;
  }
  pool_->calls()->Check(code, "cudaEventQuery");
  done_.store(true, std::memory_order_release);
  return true;
}

void CudaEvent::Wait() const {
  if (done_.load(std::memory_order_acquire)) return;
  pool_->calls()->Check(cudaEventSynchronize(event_), "cudaEventSynchronize");
  done_.store(true, std::memory_order_release);
}

void CudaEvent::Block(cudaStream_t stream) const {
  pool_->calls()->Check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
}

double CudaEvent::SecondsSince(const CudaEvent& begin) const {
  float milliseconds = 0;
  pool_->calls()->Check(cudaEventElapsedTime(&milliseconds, begin.event_, event_),
                        "cudaEventElapsedTime");
  return milliseconds / 1e3;
}

CudaEventPool::~CudaEventPool() {
  const CudaGuard guard(calls_, std::nothrow);
  for (const cudaEvent_t event : free_) calls_->Keep(cudaEventDestroy(event), "cudaEventDestroy");
}

CudaEventRef CudaEventPool::Record(cudaStream_t stream) {
  const auto event = std::make_shared<const CudaEvent>(this);
  calls_->Check(cudaEventRecord(event->event_, stream), "cudaEventRecord");
  return event;
}

size_t CudaEventPool::NumMade() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return num_made_;
}

cudaEvent_t CudaEventPool::Take() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!free_.empty()) {
    const cudaEvent_t event = free_.back();
    free_.pop_back();
    return event;
  }
  free_.reserve(num_made_ + 1);  // so that GiveBack needs no memory, and cannot throw
  cudaEvent_t event = nullptr;
  calls_->Check(cudaEventCreateWithFlags(&event, static_cast<unsigned int>(timing_)),
                "cudaEventCreateWithFlags");
  ++num_made_;
  return event;
}

void CudaEventPool::GiveBack(cudaEvent_t event) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(event);
}

void CudaStopwatch::Add(CudaEventRef begin, CudaEventRef end) {
  std::lock_guard<std::mutex> lock(mutex_);
  open_.emplace_back(std::move(begin), std::move(end));
  if (open_.size() > kMostOpen) Settle();
}

double CudaStopwatch::Seconds() const {
  std::lock_guard<std::mutex> lock(mutex_);
  Settle();
  return seconds_;
}

void CudaStopwatch::Finish() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& interval : open_) interval.second->Wait();
  Settle();
}

void CudaStopwatch::Reset() {
  std::lock_guard<std::mutex> lock(mutex_);
  open_.clear();
  seconds_ = 0;
}

void CudaStopwatch::Settle() const {
  while (!open_.empty() && open_.front().second->Done()) {
    const auto& [begin, end] = open_.front();
    seconds_ += end->SecondsSince(*begin);
    open_.pop_front();
  }
}

}  // namespace memo
