// Packs a problem of moderate size as well as a few tries allow: first fits, then exact search.
#ifndef MEMO_PACK_TOGETHER_H_
#define MEMO_PACK_TOGETHER_H_

#include <cstdint>
#include <functional>

#include "pack/problem.h"

namespace memo::pack {

// A placement that ends at `target`, or the lowest that is found before `stop`; at least one. The
// problem has no base. `strategy` is the number of the strategy to search with first, and then of
// the last one that was used: what succeeds for a problem often does for a similar one.
Offsets PackTogether(const Problem& problem, int64_t target, int64_t& strategy,
                     const std::function<bool()>& stop);

}  // namespace memo::pack

#endif  // MEMO_PACK_TOGETHER_H_
