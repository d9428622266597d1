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
#include <memory>

#include "pack/problem.h"
#include "pack/strategy.h"

namespace memo::pack {

class ExactSearch {
 public:
  enum class Verdict { kFound, kImpossible, kGaveUp };

  // Buffers of `problem` are ordered by first section and fit one by one within `capacity`.
  ExactSearch(const Problem& problem, const Conflicts& conflicts, int64_t capacity);
  ~ExactSearch();
  ExactSearch(ExactSearch&&) noexcept;

  // Searches at most `max_nodes` nodes, or until `stop` (asked at each node) says so. States that
  // failed in earlier runs are not searched again.
  Verdict Run(const Strategy& strategy, int64_t max_nodes, const std::function<bool()>& stop);

  const Offsets& offsets() const;
  int64_t nodes() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace memo::pack

#endif  // MEMO_PACK_EXACT_H_
