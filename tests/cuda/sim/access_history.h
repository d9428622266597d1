// The last write and the reads since, for every byte: two accesses without an order are a race.
#ifndef MEMO_TESTS_CUDA_SIM_ACCESS_HISTORY_H_
#define MEMO_TESTS_CUDA_SIM_ACCESS_HISTORY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sim/vector_clock.h"

namespace sim {

// Bytes [begin, end).
struct Range {
  uintptr_t begin = 0;
  uintptr_t end = 0;
};

inline Range RangeOf(const void* data, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  return Range{begin, begin + bytes};
}

struct Access {
  Epoch epoch;
  std::string what;
  bool writes = false;
};

class AccessHistory {
 public:
  // Notes that `access` touches `range`, knowing what `clock` covers. Gives the earlier access
  // that it is not ordered after, if there is one.
  std::optional<Access> Note(Range range, const Access& access, const VectorClock& clock);

  // Forgets what was done to `range`: its bytes are new.
  void Forget(Range range);

 private:
  struct Segment {
    uintptr_t end = 0;
    std::optional<Access> write;
    std::vector<Access> reads;  // since the write
  };
  using Segments = std::map<uintptr_t, Segment>;  // by begin; disjoint

  void SplitAt(uintptr_t place);
  void Cover(Range range);

  Segments segments_;
};

}  // namespace sim

#endif  // MEMO_TESTS_CUDA_SIM_ACCESS_HISTORY_H_
