// The ways in which exact search may order its decisions. None is best on all problems, so a
// search runs through them in turn with growing budgets.
#ifndef MEMO_PACK_STRATEGY_H_
#define MEMO_PACK_STRATEGY_H_

#include <cstdint>
#include <vector>

#include "pack/problem.h"

namespace memo::pack {

struct Strategy {
  // Which section is decided next; one with a single choice always is.
  enum class Pick {
    kFewest,   // fewest choices
    kFullest,  // most units still to be placed
    kFewFull,  // both: a capacity's worth of units weighs as much as eight choices
  };

  // Which of several buffers that may lie lowest is tried first: the one with the greatest ...
  enum class Preference {
    kContestedArea,      // most units alive in any of its sections, then size times lifetime
    kContestedSize,      // the same, then size
    kContestedLifetime,  // the same in steps of a fiftieth of the most, then lifetime
    kArea,
    kSize,
    kLastSection,
    kLifetime,
    kRandom,
  };

  // The strategy of each round of a search; once all were tried, chance comes in.
  static constexpr int64_t kCount = 18;
  static Strategy OfRound(int64_t round, uint64_t seed);

  // A weight for every buffer: the greater, the earlier it is tried.
  static std::vector<double> Weights(const Problem& problem, Preference preference,
                                     double noise = 0, uint64_t seed = 0);

  Pick pick;
  Preference preference;
  double noise;  // share by which chance changes the weights
  uint64_t seed;
};

}  // namespace memo::pack

#endif  // MEMO_PACK_STRATEGY_H_
