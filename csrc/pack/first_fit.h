// First fit: each buffer in turn takes the lowest gap that is free for its whole lifetime.
#ifndef MEMO_PACK_FIRST_FIT_H_
#define MEMO_PACK_FIRST_FIT_H_

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "pack/problem.h"

namespace memo::pack {

// Disjoint ranges [start, stop) of offsets that do not touch, from the lowest up.
using Ranges = std::vector<std::pair<int64_t, int64_t>>;

// Adds a range, which may overlap those that are there.
void Take(Ranges& taken, int64_t start, int64_t stop);

// What was placed before: in the way of all buffers, and of each buffer.
struct Obstacles {
  Ranges of_all;
  std::vector<Ranges> of_each;

  static Obstacles None(const Problem& problem) {
    return {{}, std::vector<Ranges>(problem.buffers.size())};
  }
};

// Peak that will do, and how many first fits to try for it.
struct Fits {
  int64_t target;
  int64_t most;
};

// First fits in several orders, each changed in turn by what ended too high. `best` is replaced by
// what is lower; one is made even if `stop` says so at once.
void FitInOrders(const Problem& problem, const Conflicts& conflicts, const Obstacles& obstacles,
                 const Fits& fits, const std::function<bool()>& stop, Offsets& best);

}  // namespace memo::pack

#endif  // MEMO_PACK_FIRST_FIT_H_
