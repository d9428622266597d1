#include "pack/windows.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>

#include "pack/exact.h"
#include "pack/first_fit.h"
#include "pack/strategy.h"

namespace memo::pack {
namespace {

constexpr int64_t kUnplaced = -1;
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();
constexpr int64_t kFits = 36;  // of a window
// The first attempt has no core: what fails becomes one with its neighbours and goes first, in so
// many rounds. That is quick, and enough for most steps.
constexpr int kRoundsOfJoining = 8;
// Windows that may join the core in a round.
constexpr int kMostFailures = 8;
// A list of this many takes 32 MB, and is made anew in every round.
constexpr int64_t kMostConflictsInCore = 4'000'000;
// Where most buffers live in several windows, these save nothing. For each buffer: conflicts
// between such (some 1,000 in a step of 192 blocks), and looks of a round at what lives beside a
// buffer in other windows (some 20).
constexpr int64_t kMostLongConflicts = 5'000;
constexpr int64_t kMostLooks = 300;

std::vector<int32_t> ByLastSection(const Problem& problem) {
  std::vector<int32_t> order(problem.buffers.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return problem.buffers[a].last < problem.buffers[b].last;
  });
  return order;
}

bool Together(const Buffer& a, const Buffer& b) { return a.first < b.last && b.first < a.last; }

// Beginnings and ends in a window: from 64 to 1024, and never twice the same.
int64_t WindowLength(int64_t attempt) {
  // Its multiples, modulo 1, always fall into the widest gap that is left.
  constexpr double kGoldenRatio = 0.6180339887498949;
  const double turn = attempt == 0 ? 0.5 : 0.37 + kGoldenRatio * static_cast<double>(attempt - 1);
  return static_cast<int64_t>(64 * std::pow(16, turn - std::floor(turn)));
}

// Of ranges in any order, which may overlap, disjoint ones that do not touch.
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

// Calls `visit` with the numbers of the nodes that make up the leaves [first, last).
template <typename Visit>
void ForEachNode(size_t num_leaves, size_t first, size_t last, Visit visit) {
  for (first += num_leaves, last += num_leaves; first < last; first /= 2, last /= 2) {
    if (first % 2 == 1) visit(first++);
    if (last % 2 == 1) visit(--last);
  }
}

constexpr int64_t kFitsTogether = 18;
// Exact search: its memory grows with the square of the buffers, its time to a first placement
// even faster.
constexpr int64_t kMostSearchedTogether = 2'000;
constexpr int64_t kSearches = 4;

// The buffers that are not alive in all sections, ordered by first section, to lie on the others.
struct Upper {
  Problem problem;
  std::vector<int32_t> index;
  int64_t ground = 0;
  Offsets offsets;  // of all buffers; those above are still to be placed
};

Upper UpperOf(const Problem& problem) {
  Upper upper;
  upper.problem.num_sections = problem.num_sections;
  upper.offsets.resize(problem.buffers.size());
  for (const int32_t i : problem.ByFirstSection()) {
    const Buffer& buffer = problem.buffers[i];
    if (problem.IsWhole(buffer)) {
      upper.offsets[i] = upper.ground;
      upper.ground += buffer.size;
    } else {
      upper.problem.buffers.push_back(buffer);
      upper.index.push_back(i);
    }
  }
  return upper;
}

// Replaces `best` if exact search finds a placement that ends at `target`.
void Search(const Problem& problem, int64_t target, int64_t& strategy,
            const std::function<bool()>& stop, Offsets& best) {
  Upper upper = UpperOf(problem);
  const int64_t size = static_cast<int64_t>(upper.index.size());
  if (size > kMostSearchedTogether || problem.LowerBound() > target) return;
  const Conflicts conflicts(upper.problem);
  ExactSearch search(upper.problem, conflicts, target - upper.ground);
  // A search that does not go astray takes hardly more nodes than there are buffers.
  const int64_t a_dive = size + size / 2 + 100;
  ExactSearch::Verdict verdict = search.Run(Strategy::OfRound(strategy, 0), a_dive, stop);
  for (int64_t k = 1; k < kSearches && verdict == ExactSearch::Verdict::kGaveUp && !stop(); ++k) {
    strategy = (strategy + 1) % Strategy::kCount;
    verdict = search.Run(Strategy::OfRound(strategy, 0), a_dive, stop);
  }
  if (verdict != ExactSearch::Verdict::kFound) return;
  best = std::move(upper.offsets);
  for (int64_t k = 0; k < size; ++k) best[upper.index[k]] = upper.ground + search.offsets()[k];
}

// The same with all buffers of one lifetime as one: these are far fewer where much of what a step
// keeps lives all through a window, and searched the sooner.
void SearchMerged(const Problem& problem, int64_t target, int64_t& strategy,
                  const std::function<bool()>& stop, Offsets& best) {
  const Merged merged(problem);
  // Unless they are far fewer, this is the search that comes next anyway.
  if (10 * merged.problem.buffers.size() > 9 * problem.buffers.size()) return;
  Offsets stacks;
  Search(merged.problem, target, strategy, stop, stacks);
  if (!stacks.empty()) best = merged.Unmerged(stacks);
}

// A placement that ends at `target`, or the lowest that is found before `stop`; at least one. The
// problem has no base. `strategy` is the number of the strategy to search with first, and then of
// the last one that was used: what succeeds for a problem often does for a similar one.
Offsets PackTogether(const Problem& problem, int64_t target, int64_t& strategy,
                     const std::function<bool()>& stop) {
  Offsets best;
  FitInOrders(problem, Conflicts(problem, false), Obstacles::None(problem), {target, kFitsTogether},
              stop, best);
  if (problem.Peak(best) > target) SearchMerged(problem, target, strategy, stop, best);
  if (problem.Peak(best) > target) Search(problem, target, strategy, stop, best);
  return best;
}

}  // namespace

// What lives all through a window, without a list of it for each window.
//
// Buffers and taken ranges, each for a run of windows. A run is kept as a few nodes of a binary
// tree over the windows, and a window asks the nodes above it.
class WindowPacker::Spans {
 public:
  explicit Spans(size_t num_windows) : nodes_(2 * num_windows) {}

  // Adds a buffer that lives all through the windows [first, last).
  void Add(size_t first, size_t last, int32_t buffer) {
    ForEachNode(nodes_.size() / 2, first, last,
                [&](size_t k) { nodes_[k].buffers.push_back(buffer); });
  }
  // Takes [start, stop) of the offsets in the windows [first, last).
  void Take(size_t first, size_t last, int64_t start, int64_t stop) {
    ForEachNode(nodes_.size() / 2, first, last,
                [&](size_t k) { pack::Take(nodes_[k].taken, start, stop); });
  }
  // Appends the buffers of a window, but for those that a call told before; there may be more of
  // those among them.
  void Tell(size_t window, std::vector<int32_t>& buffers) {
    for (size_t k = window + nodes_.size() / 2; k > 0; k /= 2) {
      if (std::exchange(nodes_[k].told, true)) continue;
      buffers.insert(buffers.end(), nodes_[k].buffers.begin(), nodes_[k].buffers.end());
    }
  }
  // What is taken all through a window.
  Ranges Taken(size_t window) const {
    Ranges taken;
    for (size_t k = window + nodes_.size() / 2; k > 0; k /= 2) {
      taken.insert(taken.end(), nodes_[k].taken.begin(), nodes_[k].taken.end());
    }
    return Joined(std::move(taken));
  }
  // Nothing is taken and nothing was told.
  void Reset() {
    for (Node& node : nodes_) node.taken.clear(), node.told = false;
  }

 private:
  struct Node {
    std::vector<int32_t> buffers;
    Ranges taken;
    bool told = false;
  };

  std::vector<Node> nodes_;  // the children of node k are 2 k and 2 k + 1; leaves are last
};

WindowPacker::WindowPacker(const Problem& problem)
    : problem_(problem),
      load_(problem.Load()),
      by_first_(problem.ByFirstSection()),
      by_last_(ByLastSection(problem)),
      window_of_(problem.num_sections) {}

WindowPacker::~WindowPacker() = default;

void WindowPacker::Pack(int64_t target, int64_t most_attempts, const std::function<bool()>& stop,
                        Offsets& best) {
  int64_t lowest = best.empty() ? kNoLimit : problem_.Peak(best);
  for (int64_t k = 0; k < most_attempts && lowest > target && !stop(); ++k, ++attempt_) {
    Cut(WindowLength(attempt_));
    if (SavesNothing()) return;
    // Where the target is out of reach, something between may not be.
    const bool between = attempt_ % 2 == 1 && lowest < kNoLimit;
    const int64_t aim = between ? target + (lowest - target) / 2 : target;
    const bool joins = attempt_ == 0;
    for (int round = 0, again = true; again && lowest > aim && !(round > 0 && stop()); ++round) {
      const bool grown = Round({aim, lowest}, joins ? 0 : kMostFailures, stop);
      if (!offsets_.empty()) best = offsets_, lowest = problem_.Peak(best);
      again = joins ? looks_left_ >= 0 && round + 1 < kRoundsOfJoining && JoinFailed() : grown;
    }
  }
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
  Index();
}

// What is known of the windows: where they are, how full, what spans them.
void WindowPacker::Index() {
  for (size_t w = 0; w < windows_.size(); ++w) {
    Window& window = windows_[w];
    std::fill(window_of_.begin() + window.first, window_of_.begin() + window.last, w);
    window.load = *std::max_element(load_.begin() + window.first, load_.begin() + window.last);
  }
  spans_ = std::make_unique<Spans>(windows_.size());
  for (size_t i = 0; i < problem_.buffers.size(); ++i) {
    const auto [first, last] = Spanned(buffer(i));
    if (first < last) spans_->Add(first, last, static_cast<int32_t>(i));
  }
}

bool WindowPacker::SavesNothing() const {
  Problem lasting{{}, problem_.num_sections, {}};
  for (const Buffer& each : problem_.buffers) {
    if (window_of_[each.first] < window_of_[each.last - 1]) lasting.buffers.push_back(each);
  }
  const int64_t size = static_cast<int64_t>(problem_.buffers.size());
  return looks_left_ < 0 || Conflicts::Count(lasting) > kMostLongConflicts * size;
}

// The windows [first, last) all through which a buffer lives; none if last <= first.
std::pair<size_t, size_t> WindowPacker::Spanned(const Buffer& buffer) const {
  const size_t first = window_of_[buffer.first], last = window_of_[buffer.last - 1];
  return {first + (windows_[first].first < buffer.first),
          last + (windows_[last].last == buffer.last)};
}

void WindowPacker::Clear() {
  for (Window& window : windows_) {
    window.failed = false, window.beginning.clear(), window.ending.clear();
  }
  spans_->Reset();
  looks_left_ = kMostLooks * static_cast<int64_t>(problem_.buffers.size());
  offsets_.assign(problem_.buffers.size(), kUnplaced);
}

std::vector<size_t> WindowPacker::FullestFirst() const {
  std::vector<size_t> order(windows_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(windows_[a].urgency, windows_[a].load) >
           std::pair(windows_[b].urgency, windows_[b].load);
  });
  return order;
}

// Whether any window failed: it goes first the next time, as one with its neighbours.
bool WindowPacker::JoinFailed() {
  std::vector<Window> joined;
  bool any = false;
  for (size_t w = 0; w < windows_.size(); ++w) {
    Window& window = windows_[w];
    any |= window.failed, window.urgency += window.failed;
    if (w > 0 && (window.failed || windows_[w - 1].failed)) {
      joined.back().last = window.last;
      joined.back().urgency = std::max(joined.back().urgency, window.urgency);
    } else {
      joined.push_back({window.first, window.last, false, window.failed, window.urgency});
    }
  }
  windows_ = std::move(joined);
  Index();
  return any;
}

// Whether the core has grown by windows that ended above the aim, at most so many. All buffers are
// placed below the limit, or else no offsets are left.
bool WindowPacker::Round(const Bounds& peak, int most_failures, const std::function<bool()>& stop) {
  Clear();
  const Task core = CoreTask();
  if (Conflicts::Count(core.problem, false) > kMostConflictsInCore) return offsets_.clear(), false;
  int64_t highest = PackCore(core, peak.aim, stop);
  int num_failed = highest > peak.aim ? most_failures : 0;
  bool grown = false;
  for (const size_t w : FullestFirst()) {
    if (windows_[w].in_core) continue;
    if (highest >= peak.limit || stop()) return offsets_.clear(), grown;
    const bool may_fail = num_failed < most_failures;
    const int64_t aim = may_fail ? peak.aim : std::max(peak.aim, highest);
    const int64_t top = PackWindow(w, aim, stop);
    windows_[w].failed = top > aim;
    if (may_fail && top > aim) windows_[w].in_core = grown = true, ++num_failed;
    highest = std::max(highest, top);
    if (looks_left_ < 0) return offsets_.clear(), false;
  }
  if (highest >= peak.limit) offsets_.clear();
  return grown;
}

// The windows of the core as one, with nothing in their way; the highest end.
int64_t WindowPacker::PackCore(const Task& core, int64_t aim, const std::function<bool()>& stop) {
  if (core.index.empty()) return 0;
  return PlaceAll(core, PackTogether(core.problem, aim, strategy_, stop));
}

// All that lives in the core. It may also meet outside of it, so time there is not left out.
WindowPacker::Task WindowPacker::CoreTask() const {
  Task task;
  std::vector<int32_t> before{0};  // windows of the core before each window
  int32_t begin = problem_.num_sections, end = 0;
  for (const Window& window : windows_) {
    before.push_back(before.back() + window.in_core);
    if (window.in_core) begin = std::min(begin, window.first), end = window.last;
  }
  for (size_t i = 0; i < problem_.buffers.size(); ++i) {
    const size_t first = window_of_[buffer(i).first], last = window_of_[buffer(i).last - 1];
    if (before[first] < before[last + 1]) task.index.push_back(static_cast<int32_t>(i));
  }
  SortByLifetime(task.index);
  std::vector<int64_t> lower, upper, size;
  for (const int32_t i : task.index) {
    lower.push_back(std::max(buffer(i).first, begin));
    upper.push_back(std::min(buffer(i).last, end));
    size.push_back(buffer(i).size);
  }
  task.problem = Problem::OfLifetimes(lower, upper, size);
  return task;
}

// What of a window is not placed yet; the highest end.
int64_t WindowPacker::PackWindow(size_t w, int64_t aim, const std::function<bool()>& stop) {
  const Task task = TaskOf(w);
  if (task.index.empty()) return 0;
  Offsets found;
  FitInOrders(task.problem, Conflicts(task.problem, false), task.obstacles, {aim, kFits}, stop,
              found);
  return PlaceAll(task, found);
}

int64_t WindowPacker::PlaceAll(const Task& task, const Offsets& offsets) {
  for (size_t k = 0; k < offsets.size(); ++k) Place(task.index[k], offsets[k]);
  return task.problem.Peak(offsets);
}

WindowPacker::Task WindowPacker::TaskOf(size_t w) {
  const Window& window = windows_[w];
  Task task;
  std::vector<int32_t> partial;  // placed, and not alive all through the window
  const auto sort_out = [&](int32_t i) {
    (offsets_[i] == kUnplaced ? task.index : partial).push_back(i);
  };
  for (const int32_t i : PartlyAlive(window)) sort_out(i);
  std::vector<int32_t> spanning;
  spans_->Tell(w, spanning);
  for (const int32_t i : spanning) {
    if (offsets_[i] == kUnplaced) task.index.push_back(i);
  }
  SortByLifetime(task.index);
  task.obstacles.of_all = spans_->Taken(w);
  task.problem.num_sections = window.last - window.first;
  for (const int32_t i : task.index) {
    const int32_t first = std::max(buffer(i).first, window.first) - window.first;
    const int32_t last = std::min(buffer(i).last, window.last) - window.first;
    task.problem.buffers.push_back({first, last, buffer(i).size});
    task.obstacles.of_each.push_back(Beside(w, i, partial));
  }
  std::vector<int64_t> base = task.problem.Load();
  for (size_t s = 0; s < base.size(); ++s) base[s] = load_[window.first + s] - base[s];
  task.problem.base = std::move(base);
  return task;
}

// What is alive in a window, but not all through it.
std::vector<int32_t> WindowPacker::PartlyAlive(const Window& window) const {
  const auto begins = std::partition_point(by_first_.begin(), by_first_.end(), [&](int32_t i) {
    return buffer(i).first < window.first;
  });
  const auto ends = std::partition_point(by_last_.begin(), by_last_.end(),
                                         [&](int32_t i) { return buffer(i).last <= window.first; });
  std::vector<int32_t> alive;
  for (auto i = begins; i != by_first_.end() && buffer(*i).first < window.last; ++i) {
    if (buffer(*i).first > window.first || buffer(*i).last < window.last) alive.push_back(*i);
  }
  for (auto i = ends; i != by_last_.end() && buffer(*i).last < window.last; ++i) {
    if (buffer(*i).first < window.first) alive.push_back(*i);
  }
  return alive;
}

// Longest lifetime first.
void WindowPacker::SortByLifetime(std::vector<int32_t>& buffers) const {
  const auto key = [&](int32_t i) { return std::pair(buffer(i).first - buffer(i).last, i); };
  std::sort(buffers.begin(), buffers.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
}

// What is placed and lives beside buffer `i`: some of `partial` in window `w`, and what lives only
// in other windows. Not complete once no looks are left.
Ranges WindowPacker::Beside(size_t w, int32_t i, const std::vector<int32_t>& partial) {
  Ranges ranges;
  const auto block = [&](const std::vector<int32_t>& others) {
    looks_left_ -= static_cast<int64_t>(others.size());
    if (looks_left_ < 0) return;
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
  const auto [begin, end] = Spanned(buffer(i));
  if (begin < end) spans_->Take(begin, end, offset, offset + buffer(i).size);
  const size_t first = window_of_[buffer(i).first], last = window_of_[buffer(i).last - 1];
  if (first == last) return;
  windows_[first].beginning.push_back(i);
  windows_[last].ending.push_back(i);
}

}  // namespace memo::pack
