// First fit: each buffer in turn takes the lowest gap that is free for its whole lifetime.
#ifndef MEMO_PACK_FIRST_FIT_H_
#define MEMO_PACK_FIRST_FIT_H_

#include <cstdint>
#include <random>
#include <vector>

#include "pack/problem.h"

namespace memo::pack {

// Buffers in the order in which they are placed.
using Order = std::vector<int32_t>;

// Orders worth trying: by size, by size times lifetime, by lifetime, by contention and size, each
// from the greatest down.
std::vector<Order> FirstFitOrders(const Problem& problem);

// Costs at most one small insertion for each conflict.
Offsets FirstFit(const Problem& problem, const Conflicts& conflicts, const Order& order);

// Moves buffers that end above `target`, and a few others by chance, towards the front.
Order PromoteHighest(const Problem& problem, const Offsets& offsets, const Order& order,
                     int64_t target, std::mt19937_64& random);

}  // namespace memo::pack

#endif  // MEMO_PACK_FIRST_FIT_H_
