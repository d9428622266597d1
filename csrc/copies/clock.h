// Seconds since an arbitrary start, and intervals measured with them.
#ifndef MEMO_COPIES_CLOCK_H_
#define MEMO_COPIES_CLOCK_H_

#include <chrono>
#include <cstdint>
#include <mutex>

namespace memo {

inline double NowSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Adds up time intervals from any number of threads.
class StopWatch {
 public:
  struct Reading {
    uint64_t intervals = 0;
    double seconds = 0;
  };

  void Add(double seconds) {
    std::lock_guard<std::mutex> lock(mutex_);
    ++reading_.intervals;
    reading_.seconds += seconds;
  }
  Reading Read() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return reading_;
  }
  void Reset() {
    std::lock_guard<std::mutex> lock(mutex_);
    reading_ = Reading();
  }

 private:
  mutable std::mutex mutex_;
  Reading reading_;
};

}  // namespace memo

#endif  // MEMO_COPIES_CLOCK_H_
