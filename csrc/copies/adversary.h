// A test mode: the worst that a device may do and still keep its contract.
#ifndef MEMO_COPIES_ADVERSARY_H_
#define MEMO_COPIES_ADVERSARY_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace memo {

// Decides, for one stream, how long each piece of work is held back when nobody waits for it, and
// in which order the bytes of a copy move. Every choice follows from the seed and the number of
// choices before it, so the same program meets the same adversary again. Not thread-safe.
class Adversary {
 public:
  using Range = std::pair<size_t, size_t>;  // begin, end

  Adversary(uint64_t seed, int stream);

  // Seconds to hold the next piece of work back: at once, a moment, or long enough that only a
  // wait sets it free.
  double HoldSeconds();

  // [0, bytes) cut into a few ranges at random places, in random order.
  std::vector<Range> Ranges(size_t bytes);

 private:
  size_t Below(size_t limit);

  std::mt19937_64 random_;
};

}  // namespace memo

#endif  // MEMO_COPIES_ADVERSARY_H_
