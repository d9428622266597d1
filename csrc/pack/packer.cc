#include "pack/packer.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "pack/first_fit.h"
#include "pack/windows.h"

namespace memo::pack {
namespace {

// A list of this many conflicts takes 320 MB.
constexpr int64_t kMostListedConflicts = 40'000'000;
constexpr size_t kMostSearchedBuffers = 20'000;
// Up to so many, first fit of the whole is quicker than window by window.
constexpr size_t kMostFitAtOnce = 500;

// Nodes of a round: a few dives at first, twice as many whenever all strategies had their turn.
int64_t NodesOf(int64_t round, size_t num_buffers) {
  // 2^30 dives are more than time allows, and the number still fits.
  const int64_t doublings = std::min<int64_t>(round / Strategy::kCount, 30);
  return (4 * static_cast<int64_t>(num_buffers) + 100) << doublings;
}

// Heuristics in n log n, for problems with too many conflicts to list.

// Free ranges below an open end, findable by place and by size.
class Holes {
 public:
  int64_t Take(int64_t size) {
    const auto fit = by_size_.lower_bound({size, 0});
    if (fit == by_size_.end()) return Extend(size);
    const auto [hole, start] = *fit;
    Remove(start, hole);
    if (hole > size) Insert(start + size, hole - size);
    return start;
  }

  void Give(int64_t start, int64_t size) {
    const auto next = by_start_.find(start + size);
    if (next != by_start_.end()) {
      const int64_t more = next->second;
      Remove(start + size, more);
      size += more;
    }
    const auto after = by_start_.lower_bound(start);
    if (after != by_start_.begin()) {
      const auto [before, bytes] = *std::prev(after);
      if (before + bytes == start) {
        Remove(before, bytes);
        start = before;
        size += bytes;
      }
    }
    Insert(start, size);
  }

 private:
  // No hole holds `size`: the last one is lengthened if it reaches the end.
  int64_t Extend(int64_t size) {
    int64_t start = end_;
    if (!by_start_.empty()) {
      const auto [last, bytes] = *by_start_.rbegin();
      if (last + bytes == end_) {
        start = last;
        Remove(last, bytes);
      }
    }
    end_ = start + size;
    return start;
  }
  void Insert(int64_t start, int64_t size) {
    by_start_[start] = size;
    by_size_.insert({size, start});
  }
  void Remove(int64_t start, int64_t size) {
    by_start_.erase(start);
    by_size_.erase({size, start});
  }

  std::map<int64_t, int64_t> by_start_;
  std::set<std::pair<int64_t, int64_t>> by_size_;
  int64_t end_ = 0;
};

// Highest value of a range of sections, where whole ranges are raised to a value.
class Skyline {
 public:
  explicit Skyline(int32_t num_sections) {
    while (leaves_ < num_sections) leaves_ *= 2;
    most_.assign(2 * leaves_, 0);
    whole_.assign(2 * leaves_, 0);
  }

  int64_t Most(const Buffer& range) const { return Most(1, 0, leaves_, range); }
  void Raise(const Buffer& range, int64_t height) { Raise(1, 0, leaves_, range, height); }

 private:
  int64_t Most(int32_t node, int32_t first, int32_t last, const Buffer& range) const {
    if (range.last <= first || last <= range.first) return 0;
    if (range.first <= first && last <= range.last) return most_[node];
    const int32_t middle = (first + last) / 2;
    const int64_t below =
        std::max(Most(2 * node, first, middle, range), Most(2 * node + 1, middle, last, range));
    return std::max(whole_[node], below);
  }

  void Raise(int32_t node, int32_t first, int32_t last, const Buffer& range, int64_t height) {
    if (range.last <= first || last <= range.first) return;
    most_[node] = std::max(most_[node], height);
    if (range.first <= first && last <= range.last) {
      whole_[node] = std::max(whole_[node], height);
      return;
    }
    const int32_t middle = (first + last) / 2;
    Raise(2 * node, first, middle, range, height);
    Raise(2 * node + 1, middle, last, range, height);
  }

  int32_t leaves_ = 1;
  std::vector<int64_t> most_;   // highest in any section of the node
  std::vector<int64_t> whole_;  // height to which all of the node was raised
};

template <typename Less>
std::vector<int32_t> Sorted(const Problem& problem, Less less) {
  std::vector<int32_t> order(problem.buffers.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return less(problem.buffers[a], problem.buffers[b]);
  });
  return order;
}

// Best fit in order of time, as an allocator would: each buffer takes the smallest hole that holds
// it, or the end.
Offsets BestFitInTime(const Problem& problem) {
  const auto starts =
      Sorted(problem, [](const Buffer& a, const Buffer& b) { return a.first < b.first; });
  const auto stops =
      Sorted(problem, [](const Buffer& a, const Buffer& b) { return a.last < b.last; });
  Holes holes;
  Offsets offsets(problem.buffers.size());
  auto next = stops.begin();
  for (const int32_t i : starts) {
    for (; problem.buffers[*next].last <= problem.buffers[i].first; ++next) {
      holes.Give(offsets[*next], problem.buffers[*next].size);
    }
    offsets[i] = holes.Take(problem.buffers[i].size);
  }
  return offsets;
}

// Longest lifetime first, each on top of everything placed that it shares time with (a skyline:
// gaps below it are given up).
Offsets LongestOnSkyline(const Problem& problem) {
  Skyline skyline(problem.num_sections);
  Offsets offsets(problem.buffers.size());
  const auto longer = [](const Buffer& a, const Buffer& b) {
    return a.last - a.first > b.last - b.first;
  };
  for (const int32_t i : Sorted(problem, longer)) {
    const Buffer& buffer = problem.buffers[i];
    offsets[i] = skyline.Most(buffer);
    skyline.Raise(buffer, offsets[i] + buffer.size);
  }
  return offsets;
}

}  // namespace

Packer::Packer(const std::vector<int64_t>& lower, const std::vector<int64_t>& upper,
               const std::vector<int64_t>& size)
    : problem_(Problem::OfLifetimes(lower, upper, size)), lower_bound_(problem_.LowerBound()) {}

bool Packer::Over() const { return stopped_ || std::chrono::steady_clock::now() >= deadline_; }

void Packer::Run(const Limits& limits) {
  limits_ = limits;
  // The clock counts nanoseconds in 64 bits, 292 years; this is 32.
  const auto most = std::chrono::duration<double>(std::min(limits.seconds, 1e9));
  deadline_ = std::chrono::steady_clock::now() +
              std::chrono::duration_cast<std::chrono::steady_clock::duration>(most);
  target_ = std::max(lower_bound_.load(), limits.capacity.value_or(0));
  offsets_.assign(problem_.buffers.size(), 0);
  std::vector<Part> parts = Split(problem_);
  // The part that decides the peak goes first, so that the others need not go below it.
  std::vector<std::pair<int64_t, size_t>> by_load;
  for (size_t k = 0; k < parts.size(); ++k) by_load.emplace_back(-parts[k].problem.LowerBound(), k);
  std::sort(by_load.begin(), by_load.end());
  for (const auto& [load, k] : by_load) PackPart(parts[k]);
}

std::vector<Packer::Part> Packer::Split(const Problem& problem) {
  std::vector<Part> parts;
  int32_t base = 0, reach = 0;
  for (const int32_t index : problem.ByFirstSection()) {
    const Buffer& buffer = problem.buffers[index];
    if (parts.empty() || buffer.first >= reach) {
      parts.emplace_back();
      base = buffer.first;
    }
    reach = std::max(reach, buffer.last);
    Part& part = parts.back();
    part.problem.buffers.push_back({buffer.first - base, buffer.last - base, buffer.size});
    part.problem.num_sections = reach - base;
    part.index.push_back(index);
  }
  return parts;
}

void Packer::PackPart(const Part& part) {
  Offsets best;
  const auto too_high = [&] {
    return best.empty() || (part.problem.Peak(best) > target_ && !Over());
  };
  if (part.problem.buffers.size() > kMostFitAtOnce) PackWindows(part.problem, best);
  if (too_high()) PackMerged(part.problem, best);
  if (too_high()) PackWhole(part.problem, best);
  for (size_t i = 0; i < best.size(); ++i) offsets_[part.index[i]] = best[i];
  const int64_t peak = std::max(peak_.load(), part.problem.Peak(best));
  peak_ = peak;
  target_ = std::max(target_, peak);
}

// Windows and sweeps; the lower of what both find.
void Packer::PackWindows(const Problem& problem, Offsets& best) {
  constexpr int64_t kAttemptsBeforeSweep = 3, kAttemptsBeforeSearch = 15;
  WindowPacker packer(problem);
  const auto over = [&] { return Over(); };
  packer.Pack(target_, kAttemptsBeforeSweep, over, best);
  if (best.empty() || problem.Peak(best) > target_) Sweep(problem, best);
  const bool is_last = problem.buffers.size() > kMostSearchedBuffers;
  packer.Pack(target_, is_last ? std::numeric_limits<int64_t>::max() : kAttemptsBeforeSearch, over,
              best);
}

// Heuristics on stacks of buffers with one lifetime: far fewer in a training step, where a block's
// forward makes what its backward frees. Not tried if there are not far fewer.
void Packer::PackMerged(const Problem& problem, Offsets& best) {
  const Merged merged(problem);
  // Unless they are far fewer, the fits of the whole find the same.
  if (10 * merged.problem.buffers.size() > 9 * problem.buffers.size()) return;
  if (Conflicts::Count(merged.problem) > kMostListedConflicts) return;
  constexpr FitBudget kGlance{18, 20'000'000};
  Offsets stacks;
  Fit(merged.problem, Conflicts(merged.problem), kGlance, stacks);
  Keep(problem, merged.Unmerged(stacks), best);
}

void Packer::PackWhole(const Problem& problem, Offsets& best) {
  if (Conflicts::Count(problem) > kMostListedConflicts) return;
  const Conflicts conflicts(problem);
  constexpr FitBudget kThorough{360, 600'000'000};
  Fit(problem, conflicts, kThorough, best);
  PackExactly(problem, conflicts, best);
}

void Packer::Fit(const Problem& problem, const Conflicts& conflicts, const FitBudget& budget,
                 Offsets& best) {
  const int64_t fits = budget.looks / static_cast<int64_t>(conflicts.size() + 1);
  FitInOrders(
      problem, conflicts, Obstacles::None(problem),
      {target_, std::clamp<int64_t>(fits, 1, budget.most)}, [&] { return Over(); }, best);
}

bool Packer::Keep(const Problem& problem, Offsets&& found, Offsets& best) {
  if (!best.empty() && problem.Peak(found) >= problem.Peak(best)) return false;
  best = std::move(found);
  return true;
}

void Packer::Sweep(const Problem& problem, Offsets& best) {
  Keep(problem, BestFitInTime(problem), best);
  if (problem.Peak(best) > target_ && !Over()) Keep(problem, LongestOnSkyline(problem), best);
}

// Searches at the lowest capacity that is not refuted and, as long as only the lowest peak will
// do, now and then half-way up to the best known peak.
void Packer::PackExactly(const Problem& problem, const Conflicts& conflicts, Offsets& best) {
  if (problem.buffers.size() > kMostSearchedBuffers) return;
  std::optional<Attempt> low, middle;
  // Kept for as long as the capacity stays: an attempt knows the states that failed.
  const auto prepare = [&](std::optional<Attempt>& attempt, int64_t capacity) -> Attempt& {
    if (!attempt || attempt->capacity != capacity) {
      attempt.emplace(Attempt{capacity, ExactSearch(problem, conflicts, capacity)});
    }
    return *attempt;
  };
  for (int64_t round = 0; problem.Peak(best) > target_ && !Over(); ++round) {
    const int64_t half_way = target_ + (problem.Peak(best) - target_) / 2;
    if (!limits_.capacity && round % 2 == 1 && half_way > target_) {
      Search(problem, prepare(middle, half_way), round / 2, best);
    } else if (Search(problem, prepare(low, target_), round, best)) {
      // Refuted; sizes are whole units, so the next capacity is one more.
      lower_bound_ = std::max(lower_bound_.load(), ++target_);
    }
  }
}

// Whether the search has shown that the part does not fit within the attempt's capacity.
bool Packer::Search(const Problem& problem, Attempt& attempt, int64_t round, Offsets& best) {
  const int64_t before = attempt.search.nodes(), elsewhere = nodes_;
  const ExactSearch::Verdict verdict = attempt.search.Run(
      Strategy::OfRound(round, limits_.seed), NodesOf(round, problem.buffers.size()), [&] {
        nodes_ = elsewhere + attempt.search.nodes() - before;
        return Over();
      });
  nodes_ = elsewhere + attempt.search.nodes() - before;
  if (verdict == ExactSearch::Verdict::kFound)
    Keep(problem, Offsets(attempt.search.offsets()), best);
  return verdict == ExactSearch::Verdict::kImpossible;
}

}  // namespace memo::pack
