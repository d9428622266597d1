// A copy stream: one worker thread that carries out copies in the order in which they were given.
#ifndef MEMO_COPIES_COPY_STREAM_H_
#define MEMO_COPIES_COPY_STREAM_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "copies/adversary.h"
#include "copies/link.h"
#include "device.h"

namespace memo {

// Pieces of work are numbered from 1; number n is done when Done(n). Because they are done in
// order, an event is just a number: see StreamEvent. Any thread may call any method.
class CopyStream {
 public:
  using Number = uint64_t;

  CopyStream(int id, Link* link);
  // Carries out everything that was given (ignoring limit and adversary), then ends the thread.
  ~CopyStream();
  // Lets the worker finish what it has without holding back; called for all streams before the
  // first is destroyed, because they may wait for each other.
  void Hurry();

  Number AddCopy(const CopySpec& copy);
  Number AddWait(EventPtr event);
  Number Last() const;

  bool Done(Number number) const { return done_.load(std::memory_order_acquire) >= number; }
  // Blocks until number is done; under the adversary this is what sets the work free.
  void Wait(Number number);

  // Starts or, with nullopt, ends the test mode for work that has not begun.
  void SetAdversary(std::optional<uint64_t> seed);

 private:
  struct Work {
    CopySpec copy;
    EventPtr event;  // not null: wait for it, and copy nothing
    double given_s;
  };

  Number Add(Work work);
  void Run();
  void HoldBack(std::unique_lock<std::mutex>& lock);
  void CarryOut(const Work& work, const std::vector<Adversary::Range>& ranges);
  void Move(const CopySpec& copy, Adversary::Range range);
  bool SleepUntil(double end_s);

  const int id_;
  Link* const link_;
  mutable std::mutex mutex_;
  std::condition_variable work_changed_;  // queue_, wanted_, adversary_ or hurry_
  std::condition_variable done_changed_;
  std::deque<Work> queue_;
  std::optional<Adversary> adversary_;
  Number given_ = 0;
  Number wanted_ = 0;  // somebody waits for the work up to this number
  std::atomic<Number> done_{0};
  bool hurry_ = false;
  bool stop_ = false;
  double link_time_s_ = 0;  // end of the last interval reserved on the link; worker only
  std::thread worker_;      // last: starts when everything above exists
};

// An event of a copy stream.
class StreamEvent : public Event {
 public:
  StreamEvent(CopyStream* stream, CopyStream::Number number) : stream_(stream), number_(number) {}
  bool Done() const override { return stream_->Done(number_); }
  void Wait() const { stream_->Wait(number_); }

 private:
  CopyStream* stream_;
  CopyStream::Number number_;
};

}  // namespace memo

#endif  // MEMO_COPIES_COPY_STREAM_H_
