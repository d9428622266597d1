#include "sim/worker.h"

#include <utility>

#include "copies/clock.h"

namespace sim {

Worker::Worker(Pulse* pulse, Actor actor, int device, uint64_t seed)
    : pulse_(pulse),
      actor_(actor),
      device_(device),
      random_(seed * 2 + 1),
      delays_(seed * 2 + 2),
      thread_([this] { Run(); }) {}

Worker::~Worker() {
  {
    const std::lock_guard<std::mutex> lock(pulse_->mutex);
    stop_ = true;
    woken_.notify_one();
  }
  thread_.join();
}

void Worker::Add(Pieces pieces) {
  queue_.push_back(Work{std::move(pieces), Ticket()});
  ++given_;
  woken_.notify_one();
}

void Worker::AddWait(Ticket ticket) {
  queue_.push_back(Work{{}, ticket});
  ++given_;
  woken_.notify_one();
}

void Worker::Hurry(Ticket ticket) {
  if (wanted_ >= ticket.number) return;
  wanted_ = ticket.number;
  woken_.notify_one();
  if (waiting_for_.worker != nullptr) waiting_for_.worker->Hurry(waiting_for_);
}

void Worker::Tick() {
  if (held_until_ == pulse_->calls) woken_.notify_one();
}

void Worker::Run() {
  std::unique_lock<std::mutex> lock(pulse_->mutex);
  while (true) {
    woken_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    HoldBack(lock);
    const Work work = std::move(queue_.front());
    queue_.pop_front();
    if (work.wait.worker != nullptr) WaitFor(work.wait, lock);
    lock.unlock();
    for (const auto& piece : work.pieces) {
      piece();
      std::this_thread::yield();
    }
    lock.lock();
    done_at_s_.push_back(memo::NowSeconds());
    ++done_;
    pulse_->work_done.notify_all();
  }
}

void Worker::HoldBack(std::unique_lock<std::mutex>& lock) {
  held_until_ = pulse_->calls + HoldCalls();
  woken_.wait(lock, [&] { return InHurry() || pulse_->calls >= held_until_; });
}

void Worker::WaitFor(Ticket ticket, std::unique_lock<std::mutex>& lock) {
  // A wait alone sets nothing free: the work waited for may be held back for as long again.
  if (InHurry()) ticket.worker->Hurry(ticket);
  waiting_for_ = ticket;
  pulse_->work_done.wait(lock, [&] { return ticket.worker->Done(ticket); });
  waiting_for_ = Ticket();
}

uint64_t Worker::HoldCalls() {
  switch (delays_() % 4) {
    case 0:
      return 0;
    case 1:
      return delays_() % 8;
    default:
      return 100 + delays_() % 100;  // until somebody waits, in most programs
  }
}

void Await(Ticket ticket, Pulse* pulse, std::unique_lock<std::mutex>& lock) {
  if (ticket.worker == nullptr) return;
  ticket.worker->Hurry(ticket);
  pulse->work_done.wait(lock, [&] { return ticket.worker->Done(ticket); });
}

}  // namespace sim
