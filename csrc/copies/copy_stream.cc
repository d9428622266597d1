#include "copies/copy_stream.h"

#include <signal.h>
#include <sys/prctl.h>

#include <algorithm>
#include <utility>

#include "copies/clock.h"

namespace memo {
namespace {

constexpr unsigned long kTimerSlackNanoseconds = 1000;  // the kernel's 50,000 spoil short sleeps

void PrepareThread() {
  prctl(PR_SET_TIMERSLACK, kTimerSlackNanoseconds);
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals are for the interpreter's threads
}

}  // namespace

CopyStream::CopyStream(int id, Link* link) : id_(id), link_(link), worker_([this] { Run(); }) {}

CopyStream::~CopyStream() {
  Hurry();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  work_changed_.notify_all();
  worker_.join();
}

void CopyStream::Hurry() {
  std::lock_guard<std::mutex> lock(mutex_);
  hurry_ = true;
  work_changed_.notify_all();
}

CopyStream::Number CopyStream::AddCopy(const CopySpec& copy) {
  link_->CountCopy(copy.Bytes());
  return Add(Work{copy.Joined(), nullptr, NowSeconds()});
}

CopyStream::Number CopyStream::AddWait(EventPtr event) {
  return Add(Work{CopySpec(), std::move(event), NowSeconds()});
}

CopyStream::Number CopyStream::Add(Work work) {
  std::lock_guard<std::mutex> lock(mutex_);
  queue_.push_back(std::move(work));
  work_changed_.notify_all();
  return ++given_;
}

CopyStream::Number CopyStream::Last() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return given_;
}

void CopyStream::Wait(Number number) {
  if (Done(number)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  wanted_ = std::max(wanted_, number);
  work_changed_.notify_all();
  done_changed_.wait(lock, [&] { return Done(number); });
}

void CopyStream::SetAdversary(std::optional<uint64_t> seed) {
  std::lock_guard<std::mutex> lock(mutex_);
  adversary_.reset();
  if (seed) adversary_.emplace(*seed, id_);
  work_changed_.notify_all();
}

void CopyStream::Run() {
  PrepareThread();
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    work_changed_.wait(lock, [&] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    HoldBack(lock);
    const Work work = std::move(queue_.front());
    queue_.pop_front();
    const size_t bytes = work.copy.Bytes();
    std::vector<Adversary::Range> ranges = {{0, bytes}};
    if (adversary_) ranges = adversary_->Ranges(bytes);
    lock.unlock();
    CarryOut(work, ranges);
    lock.lock();
    done_.store(done_.load() + 1, std::memory_order_release);
    done_changed_.notify_all();
  }
}

void CopyStream::HoldBack(std::unique_lock<std::mutex>& lock) {
  if (!adversary_) return;
  const double until_s = NowSeconds() + adversary_->HoldSeconds();
  work_changed_.wait_until(lock, TimePoint(until_s),
                           [&] { return hurry_ || !adversary_ || wanted_ > done_.load(); });
  link_time_s_ = NowSeconds();
}

void CopyStream::CarryOut(const Work& work, const std::vector<Adversary::Range>& ranges) {
  if (work.event != nullptr) {
    static_cast<const StreamEvent&>(*work.event).Wait();
    link_time_s_ = NowSeconds();
    return;
  }
  link_->BeginBusy(NowSeconds());
  link_time_s_ = std::max(link_time_s_, work.given_s);
  for (const auto& range : ranges) Move(work.copy, range);
  link_->EndBusy(NowSeconds());
}

void CopyStream::Move(const CopySpec& copy, Adversary::Range range) {
  auto [begin, end] = range;
  while (begin < end) {
    const size_t piece = std::min(end - begin, link_->PieceBytes());
    copy.CopyRange(begin, begin + piece);
    link_time_s_ = link_->Reserve(link_time_s_, piece);
    begin += piece;
    if (SleepUntil(link_time_s_)) continue;
    copy.CopyRange(begin, end);  // in a hurry: the rest at once
    return;
  }
}

// False, possibly early, when there is no time to sleep any more.
bool CopyStream::SleepUntil(double end_s) {
  if (end_s <= NowSeconds()) return true;
  std::unique_lock<std::mutex> lock(mutex_);
  return !work_changed_.wait_until(lock, TimePoint(end_s), [&] { return hurry_; });
}

}  // namespace memo
