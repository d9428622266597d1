#include "pack/packer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "pack/first_fit.h"
#include "pack/sweep.h"
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
  const int64_t doublings = std::min<int64_t>(round / kNumStrategies, 30);
  return (4 * static_cast<int64_t>(num_buffers) + 100) << doublings;
}

}  // namespace

Packer::Packer(const std::vector<int64_t>& lower, const std::vector<int64_t>& upper,
               const std::vector<int64_t>& size)
    : problem_(Reduce(lower, upper, size)), lower_bound_(LowerBound(problem_)) {}

bool Packer::Over() const { return stopped_ || std::chrono::steady_clock::now() >= deadline_; }

void Packer::Run(const Limits& limits) {
  limits_ = limits;
  const auto most = std::chrono::duration<double>(std::min(limits.seconds, 1e9));
  deadline_ = std::chrono::steady_clock::now() +
              std::chrono::duration_cast<std::chrono::steady_clock::duration>(most);
  target_ = std::max(lower_bound_.load(), limits.capacity.value_or(0));
  offsets_.assign(problem_.buffers.size(), 0);
  std::vector<Part> parts = Split(problem_);
  // The part that decides the peak goes first, so that the others need not go below it.
  std::vector<std::pair<int64_t, size_t>> by_load;
  for (size_t k = 0; k < parts.size(); ++k) by_load.emplace_back(-LowerBound(parts[k].problem), k);
  std::sort(by_load.begin(), by_load.end());
  for (const auto& [load, k] : by_load) PackPart(parts[k]);
}

void Packer::PackPart(const Part& part) {
  Offsets best;
  const auto too_high = [&] {
    return best.empty() || (Peak(part.problem, best) > target_ && !Over());
  };
  if (part.problem.buffers.size() > kMostFitAtOnce) PackWindows(part.problem, best);
  if (too_high()) PackMerged(part.problem, best);
  if (too_high()) PackWhole(part.problem, best);
  for (size_t i = 0; i < best.size(); ++i) offsets_[part.index[i]] = best[i];
  const int64_t peak = std::max(peak_.load(), Peak(part.problem, best));
  peak_ = peak;
  target_ = std::max(target_, peak);
}

// Windows and sweeps; the lower of what both find.
void Packer::PackWindows(const Problem& problem, Offsets& best) {
  constexpr int64_t kAttemptsBeforeSweep = 3, kAttemptsBeforeSearch = 15;
  WindowPacker packer(problem);
  const auto over = [&] { return Over(); };
  packer.Pack(target_, kAttemptsBeforeSweep, over, best);
  if (best.empty() || Peak(problem, best) > target_) Sweep(problem, best);
  const bool is_last = problem.buffers.size() > kMostSearchedBuffers;
  packer.Pack(target_, is_last ? std::numeric_limits<int64_t>::max() : kAttemptsBeforeSearch, over,
              best);
}

// Heuristics on stacks of buffers with one lifetime: far fewer in a training step, where a block's
// forward makes what its backward frees. Not tried if there are not far fewer.
void Packer::PackMerged(const Problem& problem, Offsets& best) {
  const Merged merged = MergeLifetimes(problem);
  if (10 * merged.problem.buffers.size() > 9 * problem.buffers.size()) return;
  if (CountConflicts(merged.problem) > kMostListedConflicts) return;
  constexpr FitBudget kGlance{18, 20'000'000};
  Offsets stacks;
  Fit(merged.problem, Conflicts(merged.problem), kGlance, stacks);
  Keep(problem, merged.Unmerged(stacks), best);
}

void Packer::PackWhole(const Problem& problem, Offsets& best) {
  if (CountConflicts(problem) > kMostListedConflicts) return;
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
  if (!best.empty() && Peak(problem, found) >= Peak(problem, best)) return false;
  best = std::move(found);
  return true;
}

void Packer::Sweep(const Problem& problem, Offsets& best) {
  Keep(problem, BestFitInTime(problem), best);
  if (Peak(problem, best) > target_ && !Over()) Keep(problem, LongestOnSkyline(problem), best);
}

// Searches at the lowest capacity that is not refuted and, as long as only the lowest peak will
// do, now and then half-way up to the best known peak.
void Packer::PackExactly(const Problem& problem, const Conflicts& conflicts, Offsets& best) {
  if (problem.buffers.size() > kMostSearchedBuffers) return;
  std::optional<Attempt> low, middle;
  const auto prepare = [&](std::optional<Attempt>& attempt, int64_t capacity) -> Attempt& {
    if (!attempt || attempt->capacity != capacity) {
      attempt.emplace(Attempt{capacity, ExactSearch(problem, conflicts, capacity)});
    }
    return *attempt;
  };
  for (int64_t round = 0; Peak(problem, best) > target_ && !Over(); ++round) {
    const int64_t half_way = target_ + (Peak(problem, best) - target_) / 2;
    if (!limits_.capacity && round % 2 == 1 && half_way > target_) {
      Search(problem, prepare(middle, half_way), round / 2, best);
    } else if (Search(problem, prepare(low, target_), round, best)) {
      lower_bound_ = std::max(lower_bound_.load(), ++target_);
    }
  }
}

// Whether the search has shown that the part does not fit within the attempt's capacity.
bool Packer::Search(const Problem& problem, Attempt& attempt, int64_t round, Offsets& best) {
  const int64_t before = attempt.search.nodes(), elsewhere = nodes_;
  const Verdict verdict = attempt.search.Run(StrategyOf(round, limits_.seed),
                                             NodesOf(round, problem.buffers.size()), [&] {
                                               nodes_ = elsewhere + attempt.search.nodes() - before;
                                               return Over();
                                             });
  nodes_ = elsewhere + attempt.search.nodes() - before;
  if (verdict == Verdict::kFound) Keep(problem, Offsets(attempt.search.offsets()), best);
  return verdict == Verdict::kImpossible;
}

}  // namespace memo::pack
