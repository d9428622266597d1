// First fit: each buffer in turn takes the lowest gap that is free for its whole lifetime.
#ifndef MEMO_PACK_FIRST_FIT_H_
#define MEMO_PACK_FIRST_FIT_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "pack/problem.h"

namespace memo::pack {

// Disjoint ranges [start, stop) of offsets that do not touch, from the lowest up.
using Ranges = std::vector<std::pair<int64_t, int64_t>>;

// Adds a range, which may overlap those that are there.
void Take(Ranges& taken, int64_t start, int64_t stop);

// Buffers in the order in which they are placed.
using Order = std::vector<int32_t>;

// Orders worth trying: by contention and lifetime, then by size, by size times lifetime, by
// lifetime, by contention and each of these, from the greatest down.
std::vector<Order> FirstFitOrders(const Problem& problem);

// The order to use for a first fit: the first one gains most from promotions, so three turns of
// four are its.
size_t OrderOfFit(int64_t fit, size_t num_orders);

// What was placed before: in the way of all buffers, and of each buffer.
struct Obstacles {
  Ranges of_all;
  std::vector<Ranges> of_each;
};

// Costs at most one small insertion for each conflict. Buffers that live in all sections need none
// in `conflicts`.
Offsets FirstFit(const Problem& problem, const Conflicts& conflicts, const Order& order,
                 Obstacles obstacles);

// Moves the buffers that end above `target` to the front: what found no room in its turn has it
// next time. ("Squeaky wheel" optimisation, Joslin and Clements, JAIR 1999.)
void PromoteHighest(const Problem& problem, const Offsets& offsets, int64_t target, Order& order);

}  // namespace memo::pack

#endif  // MEMO_PACK_FIRST_FIT_H_
