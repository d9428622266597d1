#include "pack/together.h"

#include <utility>
#include <vector>

#include "pack/exact.h"
#include "pack/first_fit.h"
#include "pack/strategy.h"

namespace memo::pack {
namespace {

constexpr int64_t kFits = 18;
// Exact search: its memory grows with the square of the buffers, its time to a first placement
// even faster.
constexpr int64_t kMostSearchedBuffers = 2'000;
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
  for (const int32_t i : ByFirstSection(problem)) {
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
  if (size > kMostSearchedBuffers || LowerBound(problem) > target) return;
  const Conflicts conflicts(upper.problem);
  ExactSearch search(upper.problem, conflicts, target - upper.ground);
  // A search that does not go astray takes hardly more nodes than there are buffers.
  const int64_t a_dive = size + size / 2 + 100;
  Verdict verdict = search.Run(StrategyOf(strategy, 0), a_dive, stop);
  for (int64_t k = 1; k < kSearches && verdict == Verdict::kGaveUp && !stop(); ++k) {
    strategy = (strategy + 1) % kNumStrategies;
    verdict = search.Run(StrategyOf(strategy, 0), a_dive, stop);
  }
  if (verdict != Verdict::kFound) return;
  best = std::move(upper.offsets);
  for (int64_t k = 0; k < size; ++k) best[upper.index[k]] = upper.ground + search.offsets()[k];
}

// The same with all buffers of one lifetime as one: these are far fewer where much of what a step
// keeps lives all through a window, and searched the sooner.
void SearchMerged(const Problem& problem, int64_t target, int64_t& strategy,
                  const std::function<bool()>& stop, Offsets& best) {
  const Merged merged = MergeLifetimes(problem);
  if (10 * merged.problem.buffers.size() > 9 * problem.buffers.size()) return;
  Offsets stacks;
  Search(merged.problem, target, strategy, stop, stacks);
  if (!stacks.empty()) best = merged.Unmerged(stacks);
}

}  // namespace

Offsets PackTogether(const Problem& problem, int64_t target, int64_t& strategy,
                     const std::function<bool()>& stop) {
  Offsets best;
  FitInOrders(problem, Conflicts(problem, false), Obstacles::None(problem), {target, kFits}, stop,
              best);
  if (Peak(problem, best) > target) SearchMerged(problem, target, strategy, stop, best);
  if (Peak(problem, best) > target) Search(problem, target, strategy, stop, best);
  return best;
}

}  // namespace memo::pack
