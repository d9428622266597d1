#include "copies/link.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace memo {
namespace {

constexpr double kPieceSeconds = 2e-3;

}  // namespace

void Link::CheckLimit(std::optional<double> bytes_per_s) {
  if (!bytes_per_s) return;
  MEMO_REQUIRE(InvalidArgument, std::isfinite(*bytes_per_s) && *bytes_per_s > 0)
      << "a bandwidth must be finite and positive, got " << *bytes_per_s
      << " bytes/s; use None for no limit";
}

void Link::SetLimit(std::optional<double> bytes_per_s) {
  CheckLimit(bytes_per_s);
  std::lock_guard<std::mutex> lock(mutex_);
  bytes_per_s_ = bytes_per_s;
  free_from_s_ = 0;  // what was reserved at the speed before is over
}

double Link::Reserve(double ready_s, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!bytes_per_s_) return ready_s;
  free_from_s_ = std::max(ready_s, free_from_s_) + static_cast<double>(bytes) / *bytes_per_s_;
  return free_from_s_;
}

size_t Link::PieceBytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  constexpr size_t kWhole = std::numeric_limits<size_t>::max();
  // Above that a piece would have 2 TB and more: whole copies, and no number to overflow.
  if (!bytes_per_s_ || *bytes_per_s_ > 1e15) return kWhole;
  return std::max<size_t>(1, static_cast<size_t>(*bytes_per_s_ * kPieceSeconds));
}

void Link::CountCopy(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  ++counters_.copies;
  counters_.bytes += bytes;
}

void Link::BeginBusy(double now_s) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (busy_copies_++ == 0) busy_since_s_ = now_s;
}

void Link::EndBusy(double now_s) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (--busy_copies_ == 0) counters_.busy_s += now_s - busy_since_s_;
}

LinkCounters Link::Counters() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return counters_;
}

void Link::ResetCounters(double now_s) {
  std::lock_guard<std::mutex> lock(mutex_);
  counters_ = LinkCounters();
  busy_since_s_ = now_s;  // for copies that are under way
}

}  // namespace memo
