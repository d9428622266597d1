// A packing run: fast heuristics first, window by window where there are many buffers, then exact
// search for as long as a gap and time remain.
#ifndef MEMO_PACK_PACKER_H_
#define MEMO_PACK_PACKER_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "pack/exact.h"
#include "pack/problem.h"

namespace memo::pack {

// Runs once, on one thread; the counters may be read and Stop called from other threads.
// Until time runs out, what it finds depends on the problem, capacity and seed alone.
class Packer {
 public:
  struct Limits {
    // Any placement of at most this peak will do; none asks for the lowest peak.
    std::optional<int64_t> capacity;
    double seconds;
    uint64_t seed;
  };

  // Lifetimes are half-open, lower < upper; sizes are 1 or more and add up to less than 2^62.
  Packer(const std::vector<int64_t>& lower, const std::vector<int64_t>& upper,
         const std::vector<int64_t>& size);

  void Run(const Limits& limits);
  void Stop() { stopped_ = true; }

  // The best placement and its peak; of all buffers, in the order in which they were given.
  const Offsets& offsets() const { return offsets_; }
  // Peak of the best placement so far; -1 before there is one.
  int64_t peak() const { return peak_; }
  // No placement has a lower peak: the most units alive at once, or what exact search has refuted.
  int64_t lower_bound() const { return lower_bound_; }
  // Nodes of exact search.
  int64_t nodes() const { return nodes_; }

 private:
  // Buffers of one independent part, with their places in the whole, ordered by first section.
  struct Part {
    Problem problem;
    std::vector<int32_t> index;
  };

  // Exact search for one capacity, kept between rounds for the states it knows to fail.
  struct Attempt {
    int64_t capacity;
    ExactSearch search;
  };

  // First fits to try: at least one, at most `most`, and as many as may look at `looks` conflicts
  // in all: a million takes some 7 ms.
  struct FitBudget {
    int64_t most;
    int64_t looks;
  };

  // The parts between which no lifetime crosses, in order of time.
  static std::vector<Part> Split(const Problem& problem);
  void PackPart(const Part& part);
  void PackWindows(const Problem& problem, Offsets& best);
  void PackMerged(const Problem& problem, Offsets& best);
  void PackWhole(const Problem& problem, Offsets& best);
  void Sweep(const Problem& problem, Offsets& best);
  void Fit(const Problem& problem, const Conflicts& conflicts, const FitBudget& budget,
           Offsets& best);
  void PackExactly(const Problem& problem, const Conflicts& conflicts, Offsets& best);
  bool Search(const Problem& problem, Attempt& attempt, int64_t round, Offsets& best);
  bool Keep(const Problem& problem, Offsets&& found, Offsets& best);
  // Out of time, told to stop, or the capacity is refuted.
  bool Over() const;

  const Problem problem_;
  Limits limits_{};
  std::chrono::steady_clock::time_point deadline_;
  // What a part's peak should come down to; nothing is gained by less.
  int64_t target_ = 0;
  Offsets offsets_;
  std::atomic<bool> stopped_{false};
  std::atomic<int64_t> peak_{-1};
  std::atomic<int64_t> lower_bound_{0};
  std::atomic<int64_t> nodes_{0};
};

}  // namespace memo::pack

#endif  // MEMO_PACK_PACKER_H_
