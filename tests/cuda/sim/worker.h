// One stream: a thread that does its work in order, as late as the seed says.
#ifndef MEMO_TESTS_CUDA_SIM_WORKER_H_
#define MEMO_TESTS_CUDA_SIM_WORKER_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "sim/vector_clock.h"

namespace sim {

// Shared by all workers of a machine and its host. The clock of delays is the number of CUDA calls
// that the host has made, so that a seed means the same on a slow machine.
struct Pulse {
  std::mutex mutex;
  std::condition_variable work_done;
  uint64_t calls = 0;
};

class Worker;

// Work number `number` of a worker, to be waited for; null worker: nothing to wait for.
struct Ticket {
  Worker* worker = nullptr;
  uint64_t number = 0;
};

using Pieces = std::vector<std::function<void()>>;

// All methods but the constructor and destructor need `pulse->mutex` to be held.
class Worker {
 public:
  Worker(Pulse* pulse, Actor actor, int device, uint64_t seed);
  // Does what is left, at once.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Pieces run one after the other, each outside of the mutex.
  void Add(Pieces pieces);
  // What is added from now on runs after `ticket`.
  void AddWait(Ticket ticket);
  // Everything added so far.
  Ticket Last() { return Ticket{this, given_}; }

  // The host has made a call: time goes on.
  void Tick();

  bool Done(Ticket ticket) const { return done_ >= ticket.number; }
  // Seconds of a steady clock at which that work was over; 0 for none.
  double DoneAt(Ticket ticket) const {
    return ticket.number == 0 ? 0 : done_at_s_[static_cast<size_t>(ticket.number) - 1];
  }
  // Somebody waits for it: no more delays on the way there.
  void Hurry(Ticket ticket);

  Actor actor() const { return actor_; }
  int device() const { return device_; }
  VectorClock& clock() { return clock_; }
  std::mt19937_64& random() { return random_; }

 private:
  struct Work {
    Pieces pieces;
    Ticket wait;
  };

  void Run();
  void HoldBack(std::unique_lock<std::mutex>& lock);
  void WaitFor(Ticket ticket, std::unique_lock<std::mutex>& lock);
  bool InHurry() const { return stop_ || wanted_ > done_; }
  uint64_t HoldCalls();

  Pulse* const pulse_;
  const Actor actor_;
  const int device_;
  std::mt19937_64 random_;  // of whoever adds work
  std::mt19937_64 delays_;  // of the thread
  VectorClock clock_;       // of the work added last
  std::deque<Work> queue_;
  uint64_t given_ = 0;
  uint64_t done_ = 0;
  std::vector<double> done_at_s_;  // of each work that is done
  uint64_t wanted_ = 0;
  uint64_t held_until_ = 0;  // in calls
  Ticket waiting_for_;
  bool stop_ = false;
  std::condition_variable woken_;
  std::thread thread_;
};

// Blocks the caller, who holds `lock` on the pulse, until the work is done.
void Await(Ticket ticket, Pulse* pulse, std::unique_lock<std::mutex>& lock);

}  // namespace sim

#endif  // MEMO_TESTS_CUDA_SIM_WORKER_H_
