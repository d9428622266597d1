// A copy stream: one worker thread that carries out copies in the order in which they were given.
#ifndef MEMO_COPIES_COPY_STREAM_H_
#define MEMO_COPIES_COPY_STREAM_H_

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "copies/link.h"
#include "device.h"

namespace memo {

// Any thread may call any method.
class CopyStream {
 public:
  CopyStream(int id, Link* link);
  // Carries out everything that was given (ignoring limit and adversary), then ends the thread.
  ~CopyStream();
  // Lets the worker finish what it has without holding back; called for all streams before the
  // first is destroyed, because they may wait for each other.
  void Hurry();

  void AddCopies(const std::vector<CopySpec>& copies);
  // What is added from now on starts after `event`, which is one of any copy stream.
  void AddWait(EventPtr event);

  // An event for everything that was added so far.
  EventPtr Record();
  // Blocks until an event of a copy stream is done; under the adversary this is what sets the work
  // free.
  static void WaitFor(const Event& event);

  // Starts or, with nullopt, ends a test mode for work that has not begun: the worst that a device
  // may do and still keep its contract. Work is held back until somebody waits for it, and the
  // bytes of a copy move in any order, all as the seed says.
  void SetAdversary(std::optional<uint64_t> seed);

 private:
  class Adversary;
  class StreamEvent;

  // Pieces of work are numbered from 1; number n is done when Done(n). Because they are done in
  // order, an event is just a number.
  using Number = uint64_t;
  using Range = std::pair<size_t, size_t>;  // begin, end

  struct Work {
    CopySpec copy;
    EventPtr event;  // not null: wait for it, and copy nothing
    double given_s;
  };

  bool Done(Number number) const { return done_.load(std::memory_order_acquire) >= number; }
  void Wait(Number number);
  void Run();
  void HoldBack(std::unique_lock<std::mutex>& lock);
  void CarryOut(const Work& work, const std::vector<Range>& ranges);
  void Move(const CopySpec& copy, Range range);
  bool SleepUntil(double end_s);

  const int id_;
  Link* const link_;
  mutable std::mutex mutex_;
  std::condition_variable work_changed_;  // queue_, wanted_, adversary_ or hurry_
  std::condition_variable done_changed_;
  std::deque<Work> queue_;
  std::unique_ptr<Adversary> adversary_;  // null: none
  Number given_ = 0;
  Number wanted_ = 0;  // somebody waits for the work up to this number
  std::atomic<Number> done_{0};
  bool hurry_ = false;
  bool stop_ = false;
  double link_time_s_ = 0;  // end of the last interval reserved on the link; worker only
  std::thread worker_;      // last: starts when everything above exists
};

}  // namespace memo

#endif  // MEMO_COPIES_COPY_STREAM_H_
