#include "pack/windows.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>

namespace memo::pack {
namespace {

constexpr int64_t kUnplaced = -1;
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
constexpr int kRounds = 8;  // of an attempt
constexpr int kFits = 36;   // of a window
constexpr size_t kStride = 4096;

bool Together(const Buffer& a, const Buffer& b) { return a.first < b.last && b.first < a.last; }

// Beginnings and ends in a window: from 64 to 1024, and never twice the same.
int64_t WindowLength(int64_t attempt) {
  constexpr double kGoldenRatio = 0.6180339887498949;
  const double turn = 0.5 + kGoldenRatio * static_cast<double>(attempt);
  return static_cast<int64_t>(64 * std::pow(16, turn - std::floor(turn)));
}

Ranges Joined(Ranges ranges) {
  std::sort(ranges.begin(), ranges.end());
  Ranges joined;
  for (const auto& [start, stop] : ranges) {
    if (joined.empty() || joined.back().second < start) {
      joined.emplace_back(start, stop);
    } else {
      joined.back().second = std::max(joined.back().second, stop);
    }
  }
  return joined;
}

}  // namespace

WindowPacker::WindowPacker(const Problem& problem)
    : problem_(problem), load_(Load(problem)), by_first_(ByFirstSection(problem)) {
  std::vector<int32_t> alive;
  for (size_t k = 0; k < by_first_.size(); ++k) {
    if (k % kStride == 0) {
      const int32_t now = buffer(by_first_[k]).first;
      const auto gone = [&](int32_t i) { return buffer(i).last <= now; };
      alive.erase(std::remove_if(alive.begin(), alive.end(), gone), alive.end());
      alive_before_.push_back(alive);
    }
    alive.push_back(by_first_[k]);
  }
}

Offsets WindowPacker::Pack(int64_t target, int64_t most_attempts,
                           const std::function<bool()>& stop) {
  Offsets best;
  int64_t lowest = kNoLimit;
  for (int64_t attempt = 0; attempt < most_attempts; ++attempt) {
    Cut(WindowLength(attempt));
    for (int round = 0; round < kRounds; ++round) {
      if (!best.empty() && stop()) return best;
      if (Round(target, lowest, stop)) {
        best = offsets_;
        lowest = Peak(problem_, best);
        if (lowest <= target) return best;
      }
      JoinFailed();
    }
  }
  return best;
}

void WindowPacker::Cut(int64_t num_events) {
  std::vector<int64_t> events(problem_.num_sections + 1, 0);
  for (const Buffer& each : problem_.buffers) ++events[each.first], ++events[each.last];
  windows_.clear();
  int64_t in_window = num_events;
  for (int32_t s = 0; s < problem_.num_sections; ++s) {
    if (in_window >= num_events) {
      if (!windows_.empty()) windows_.back().last = s;
      windows_.push_back({s, problem_.num_sections});
      in_window = 0;
    }
    in_window += events[s];
  }
}

void WindowPacker::Clear() {
  for (Window& window : windows_) {
    window.load = *std::max_element(load_.begin() + window.first, load_.begin() + window.last);
    window.beginning.clear(), window.ending.clear();
  }
  failed_.assign(windows_.size(), 0);
  offsets_.assign(problem_.buffers.size(), kUnplaced);
}

// Whether all buffers were placed below `limit`; gives up at the first window that was not.
bool WindowPacker::Round(int64_t target, int64_t limit, const std::function<bool()>& stop) {
  Clear();
  std::vector<size_t> order(windows_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(windows_[a].urgency, windows_[a].load) >
           std::pair(windows_[b].urgency, windows_[b].load);
  });
  for (const size_t w : order) {
    if (limit < kNoLimit && stop()) return false;
    const int64_t top = PackWindow(w, target, stop);
    failed_[w] = top > target;
    if (top >= limit) return false;
    target = std::max(target, top);
  }
  return true;
}

// First fits in several orders, each changed in turn by what ended too high; the highest end.
int64_t WindowPacker::PackWindow(size_t w, int64_t target, const std::function<bool()>& stop) {
  const Task task = TaskOf(w);
  if (task.index.empty()) return 0;
  const Conflicts conflicts(task.problem, false);
  std::vector<Order> orders = FirstFitOrders(task.problem);
  Offsets best;
  int64_t lowest = kNoLimit;
  for (int64_t fit = 0; fit < kFits && lowest > target && (fit == 0 || !stop()); ++fit) {
    Order& order = orders[OrderOfFit(fit, orders.size())];
    Offsets found = FirstFit(task.problem, conflicts, order, task.obstacles);
    PromoteHighest(task.problem, found, target, order);
    const int64_t peak = Peak(task.problem, found);
    if (peak < lowest) best = std::move(found), lowest = peak;
  }
  for (size_t k = 0; k < best.size(); ++k) Place(task.index[k], best[k]);
  return lowest;
}

WindowPacker::Task WindowPacker::TaskOf(size_t w) const {
  const Window& window = windows_[w];
  Task task;
  std::vector<int32_t> partial;
  Ranges whole;
  for (const int32_t i : AliveIn(window)) {
    if (offsets_[i] == kUnplaced) {
      task.index.push_back(i);
    } else if (buffer(i).first <= window.first && window.last <= buffer(i).last) {
      whole.emplace_back(offsets_[i], offsets_[i] + buffer(i).size);
    } else {
      partial.push_back(i);
    }
  }
  const auto lifetime = [&](int32_t i) { return buffer(i).last - buffer(i).first; };
  std::stable_sort(task.index.begin(), task.index.end(),
                   [&](int32_t a, int32_t b) { return lifetime(a) > lifetime(b); });
  task.obstacles.of_all = Joined(std::move(whole));
  task.problem.num_sections = window.last - window.first;
  for (const int32_t i : task.index) {
    const int32_t first = std::max(buffer(i).first, window.first) - window.first;
    const int32_t last = std::min(buffer(i).last, window.last) - window.first;
    task.problem.buffers.push_back({first, last, buffer(i).size});
    task.obstacles.of_each.push_back(Beside(w, i, partial));
  }
  std::vector<int64_t> base = Load(task.problem);
  for (size_t s = 0; s < base.size(); ++s) base[s] = load_[window.first + s] - base[s];
  task.problem.base = std::move(base);
  return task;
}

std::vector<int32_t> WindowPacker::AliveIn(const Window& window) const {
  const auto begins_before = [&](int32_t i, int32_t section) { return buffer(i).first < section; };
  const auto begun =
      std::lower_bound(by_first_.begin(), by_first_.end(), window.first, begins_before);
  const auto end = std::lower_bound(begun, by_first_.end(), window.last, begins_before);
  const size_t stride = static_cast<size_t>(begun - by_first_.begin()) / kStride;
  std::vector<int32_t> alive;
  const auto is_alive = [&](int32_t i) { return buffer(i).last > window.first; };
  const std::vector<int32_t>& before = alive_before_[stride];
  std::copy_if(before.begin(), before.end(), std::back_inserter(alive), is_alive);
  const auto next = by_first_.begin() + static_cast<ptrdiff_t>(stride * kStride);
  std::copy_if(next, end, std::back_inserter(alive), is_alive);
  return alive;
}

// What is placed and lives beside buffer `i`: some of `partial` in window `w`, and what lives only
// in other windows.
Ranges WindowPacker::Beside(size_t w, int32_t i, const std::vector<int32_t>& partial) const {
  Ranges ranges;
  const auto block = [&](const std::vector<int32_t>& others) {
    for (const int32_t j : others) {
      if (!Together(buffer(i), buffer(j))) continue;
      Take(ranges, offsets_[j], offsets_[j] + buffer(j).size);
    }
  };
  block(partial);
  for (size_t v = w + 1; v < windows_.size() && windows_[v].first < buffer(i).last; ++v) {
    block(windows_[v].beginning);
  }
  for (size_t v = w; v-- > 0 && buffer(i).first < windows_[v].last;) block(windows_[v].ending);
  return ranges;
}

void WindowPacker::Place(int32_t i, int64_t offset) {
  offsets_[i] = offset;
  const size_t first = WindowOf(buffer(i).first), last = WindowOf(buffer(i).last - 1);
  if (first == last) return;
  windows_[first].beginning.push_back(i);
  windows_[last].ending.push_back(i);
}

size_t WindowPacker::WindowOf(int32_t section) const {
  const auto after =
      std::upper_bound(windows_.begin(), windows_.end(), section,
                       [](int32_t value, const Window& window) { return value < window.first; });
  return static_cast<size_t>(after - windows_.begin()) - 1;
}

// Windows that ended too high go first the next time, as one with their neighbours.
void WindowPacker::JoinFailed() {
  std::vector<Window> windows;
  for (size_t w = 0; w < windows_.size(); ++w) {
    windows_[w].urgency += failed_[w];
    if (w > 0 && (failed_[w] || failed_[w - 1])) {
      windows.back().last = windows_[w].last;
      windows.back().urgency = std::max(windows.back().urgency, windows_[w].urgency);
    } else {
      windows.push_back(std::move(windows_[w]));
    }
  }
  windows_ = std::move(windows);
}

}  // namespace memo::pack
