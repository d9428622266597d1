// Packs a problem of moderate size as well as a few tries allow: first fits, then exact search.
#ifndef MEMO_PACK_TOGETHER_H_
#define MEMO_PACK_TOGETHER_H_

#include <cstdint>
#include <functional>

#include "pack/problem.h"

namespace memo::pack {

// A placement that ends at `target`, or the lowest that is found before `stop`; at least one. The
// problem has no base.
Offsets PackTogether(const Problem& problem, int64_t target, const std::function<bool()>& stop);

}  // namespace memo::pack

#endif  // MEMO_PACK_TOGETHER_H_
