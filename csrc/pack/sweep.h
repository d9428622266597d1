// Heuristics in n log n for problems with too many conflicts to list.
#ifndef MEMO_PACK_SWEEP_H_
#define MEMO_PACK_SWEEP_H_

#include "pack/problem.h"

namespace memo::pack {

// Best fit in order of time, as an allocator would: each buffer takes the smallest hole that holds
// it, or the end.
Offsets BestFitInTime(const Problem& problem);

// Longest lifetime first, each on top of everything placed that it shares time with (a skyline:
// gaps below it are given up).
Offsets LongestOnSkyline(const Problem& problem);

}  // namespace memo::pack

#endif  // MEMO_PACK_SWEEP_H_
