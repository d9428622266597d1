#include "cuda/cuda_stopwatch.h"

namespace memo {

void CudaStopwatch::Add(EventRef begin, EventRef end) {
  std::lock_guard<std::mutex> lock(mutex_);
  open_.emplace_back(std::move(begin), std::move(end));
  if (open_.size() > kMostOpen) Settle();
}

double CudaStopwatch::Seconds() const {
  std::lock_guard<std::mutex> lock(mutex_);
  Settle();
  return seconds_;
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
