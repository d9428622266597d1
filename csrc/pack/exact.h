// Exact search for a placement within a capacity, by branch and bound over placements that are
// pushed down as far as they go (any placement can be pushed down without raising its peak).
//
// A node picks one section and decides which buffer lies lowest in it: one of those whose floor is
// the section's, resting there, or none of them, which raises the section's floor. The section with
// the fewest choices goes first. A node fails when in some section the unplaced buffers, taken in
// order of their floors, end above the capacity. Once a long buffer is placed, the parts of time it
// connected are solved apart from each other. States that failed are remembered.
#ifndef MEMO_PACK_EXACT_H_
#define MEMO_PACK_EXACT_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "pack/failed_states.h"
#include "pack/problem.h"
#include "pack/state.h"
#include "pack/strategy.h"

namespace memo::pack {

enum class Verdict { kFound, kImpossible, kGaveUp };

class ExactSearch {
 public:
  // Buffers of `problem` are ordered by first section and fit one by one within `capacity`.
  ExactSearch(const Problem& problem, const Conflicts& conflicts, int64_t capacity);

  // Searches at most `max_nodes` nodes, or until `stop` (asked at each node) says so. States that
  // failed in earlier runs are not searched again.
  Verdict Run(const Strategy& strategy, int64_t max_nodes, const std::function<bool()>& stop);

  const Offsets& offsets() const { return state_.offsets(); }
  int64_t nodes() const { return nodes_; }

 private:
  // Unplaced buffers that belong together: active_[begin, end), alive in sections [first, last).
  struct Region {
    size_t begin, end;
    int32_t first, last;
  };

  Verdict Solve(const Region& region);
  Verdict Branch(const Region& region);
  Verdict SolveWithout(const Region& region, int32_t placed);
  Verdict SolveRaised(const Region& region, int32_t section, int64_t floor);

  bool Tighten(const Region& region);
  void Survey(const Region& region);
  bool LiftUnsupported(const Region& region);
  bool ExceedsCapacity(const Region& region);
  int32_t PickSection(const Region& region);
  bool MayLieLowest(int32_t i) const;
  int64_t FloorIfNoneLies(const Region& region, int32_t section) const;
  std::vector<int32_t> Choices(const Region& region, int32_t section);
  Fingerprint Describe(const Region& region) const;
  bool OutOfBudget();

  const Problem& problem_;
  State state_;
  const int64_t capacity_;
  FailedStates failed_;
  Pick pick_ = Pick::kFewest;
  std::vector<double> weight_;
  std::vector<int32_t> active_;
  std::vector<int32_t> by_floor_;
  // Per section, of the buffers unplaced in it: lowest floor; lowest end; scratch.
  std::vector<int64_t> lowest_;
  std::vector<int64_t> lowest_top_;
  std::vector<int64_t> filled_;
  std::vector<int32_t> num_choices_;
  int64_t nodes_ = 0;
  int64_t max_nodes_ = 0;
  int32_t depth_ = 0;
  bool gave_up_ = false;
  const std::function<bool()>* stop_ = nullptr;
};

}  // namespace memo::pack

#endif  // MEMO_PACK_EXACT_H_
