// First fit: each buffer in turn takes the lowest gap that is free for its whole lifetime.
#ifndef MEMO_PACK_FIRST_FIT_H_
#define MEMO_PACK_FIRST_FIT_H_

#include <cstdint>
#include <vector>

#include "pack/problem.h"

namespace memo::pack {

// Buffers in the order in which they are placed.
using Order = std::vector<int32_t>;

// Orders worth trying: by contention and lifetime, then by size, by size times lifetime, by
// lifetime, by contention and each of these, from the greatest down.
std::vector<Order> FirstFitOrders(const Problem& problem);

// Costs at most one small insertion for each conflict.
Offsets FirstFit(const Problem& problem, const Conflicts& conflicts, const Order& order);

// Moves the buffers that end above `target` to the front: what found no room in its turn has it
// next time. ("Squeaky wheel" optimisation, Joslin and Clements, JAIR 1999.)
void PromoteHighest(const Problem& problem, const Offsets& offsets, int64_t target, Order& order);

}  // namespace memo::pack

#endif  // MEMO_PACK_FIRST_FIT_H_
