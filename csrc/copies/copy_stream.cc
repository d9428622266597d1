#include "copies/copy_stream.h"

#include <signal.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "copies/clock.h"

namespace memo {
namespace {

constexpr unsigned long kTimerSlackNanoseconds = 1000;  // the kernel's 50,000 spoil short sleeps

std::chrono::steady_clock::time_point TimePoint(double seconds) {
  return std::chrono::steady_clock::time_point(
      std::chrono::duration_cast<std::chrono::steady_clock::duration>(
          std::chrono::duration<double>(seconds)));
}

void PrepareThread() {
  prctl(PR_SET_TIMERSLACK, kTimerSlackNanoseconds);
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals are for the interpreter's threads
}

constexpr size_t kMostRanges = 8;
constexpr double kMomentSeconds = 5e-3;
constexpr double kLongSeconds = 2.0;

}  // namespace

// Decides, for one stream, how long each piece of work is held back when nobody waits for it, and
// in which order the bytes of a copy move. Every choice follows from the seed and the number of
// choices before it, so the same program meets the same adversary again.
class CopyStream::Adversary {
 public:
  Adversary(uint64_t seed, int stream)
      // Multiplied, so that no stream of one seed is the next stream of the seed before.
      : random_(seed * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(stream)) {}

  // Seconds to hold the next piece of work back: at once, a moment, or long enough that only a
  // wait sets it free.
  double HoldSeconds() {
    // One in eight at once, three a moment, four long.
    const size_t kind = Below(8);
    if (kind == 0) return 0;
    const double most = kind <= 3 ? kMomentSeconds : kLongSeconds;
    const double least = kind <= 3 ? 0 : kLongSeconds / 2;
    return least + (most - least) * static_cast<double>(Below(1000)) / 1000;
  }

  // [0, bytes) cut into a few ranges at random places, in random order.
  std::vector<Range> Ranges(size_t bytes) {
    std::vector<size_t> cuts = {0, bytes};
    for (size_t i = 1 + Below(kMostRanges); i > 1; --i) cuts.push_back(Below(bytes + 1));
    std::sort(cuts.begin(), cuts.end());
    std::vector<Range> ranges;
    for (size_t i = 1; i < cuts.size(); ++i) {
      if (cuts[i - 1] < cuts[i]) ranges.emplace_back(cuts[i - 1], cuts[i]);
    }
    for (size_t i = ranges.size(); i > 1; --i) std::swap(ranges[i - 1], ranges[Below(i)]);
    return ranges;
  }

 private:
  size_t Below(size_t limit) { return static_cast<size_t>(random_() % limit); }

  std::mt19937_64 random_;
};

class CopyStream::StreamEvent : public Event {
 public:
  StreamEvent(CopyStream* stream, Number number) : stream_(stream), number_(number) {}
  bool Done() const override { return stream_->Done(number_); }
  void Wait() const { stream_->Wait(number_); }

 private:
  CopyStream* const stream_;
  const Number number_;
};

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

void CopyStream::AddCopies(const std::vector<CopySpec>& copies) {
  for (const CopySpec& copy : copies) link_->CountCopy(copy.Bytes());
  const double now_s = NowSeconds();
  // Under one lock, so that an idle worker is woken once.
  std::lock_guard<std::mutex> lock(mutex_);
  for (const CopySpec& copy : copies) queue_.push_back(Work{copy.Joined(), nullptr, now_s});
  given_ += copies.size();
  work_changed_.notify_all();
}

void CopyStream::AddWait(EventPtr event) {
  std::lock_guard<std::mutex> lock(mutex_);
  queue_.push_back(Work{CopySpec(), std::move(event), NowSeconds()});
  ++given_;
  work_changed_.notify_all();
}

EventPtr CopyStream::Record() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::make_shared<StreamEvent>(this, given_);
}

void CopyStream::WaitFor(const Event& event) { static_cast<const StreamEvent&>(event).Wait(); }

void CopyStream::Wait(Number number) {
  if (Done(number)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  wanted_ = std::max(wanted_, number);
  work_changed_.notify_all();
  done_changed_.wait(lock, [&] { return Done(number); });
}

void CopyStream::SetAdversary(std::optional<uint64_t> seed) {
  std::lock_guard<std::mutex> lock(mutex_);
  adversary_ = seed ? std::make_unique<Adversary>(*seed, id_) : nullptr;
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
    std::vector<Range> ranges = {{0, bytes}};
    // Now: without the lock the adversary may be gone.
    if (adversary_) ranges = adversary_->Ranges(bytes);
    lock.unlock();
    CarryOut(work, ranges);
    lock.lock();
    // No other thread writes it. Released: who sees the number sees the bytes.
    done_.store(done_.load() + 1, std::memory_order_release);
    done_changed_.notify_all();
  }
}

void CopyStream::HoldBack(std::unique_lock<std::mutex>& lock) {
  if (!adversary_) return;
  const double until_s = NowSeconds() + adversary_->HoldSeconds();
  work_changed_.wait_until(lock, TimePoint(until_s),
                           [&] { return hurry_ || !adversary_ || wanted_ > done_.load(); });
  link_time_s_ = NowSeconds();  // time held back is not made up for by a faster copy
}

void CopyStream::CarryOut(const Work& work, const std::vector<Range>& ranges) {
  if (work.event != nullptr) {
    WaitFor(*work.event);
    link_time_s_ = NowSeconds();
    return;
  }
  link_->BeginBusy(NowSeconds());
  // From the end of the copy before as the link has it, so that having overslept costs nothing.
  link_time_s_ = std::max(link_time_s_, work.given_s);
  for (const auto& range : ranges) Move(work.copy, range);
  link_->EndBusy(NowSeconds());
}

void CopyStream::Move(const CopySpec& copy, Range range) {
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
