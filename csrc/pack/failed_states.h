// Remembers states that were searched through in vain.
#ifndef MEMO_PACK_FAILED_STATES_H_
#define MEMO_PACK_FAILED_STATES_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace memo::pack {

// Order-independent 128-bit fingerprint of a set of (number, value) pairs.
struct Fingerprint {
  uint64_t low = 0;
  uint64_t high = 0;

  void Add(uint64_t number, uint64_t value) {
    const uint64_t word = Mix(number * 0x9e3779b97f4a7c15ULL ^ Mix(value));
    low += word;
    high += Mix(word ^ 0xd1b54a32d192ed03ULL);
  }
  bool operator==(const Fingerprint& other) const { return low == other.low && high == other.high; }

 private:
  // The finaliser of SplitMix64.
  static uint64_t Mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
  }
};

// A hash table of one slot a state, in which a newer state takes an older one's slot. It grows
// with use up to 2^kMostBits slots (16 MiB). That two states have one fingerprint, and so the
// search skips what it should not, is taken to be impossible (some 2^-128 for each pair).
class FailedStates {
 public:
  FailedStates() : slots_(size_t{1} << bits_) {}
  bool Has(const Fingerprint& state) const { return slots_[Slot(state)] == state; }
  void Add(const Fingerprint& state) {
    if (++added_ > slots_.size() / 2 && bits_ < kMostBits) Grow();
    slots_[Slot(state)] = state;
  }

 private:
  static constexpr int kLeastBits = 10, kMostBits = 20;

  size_t Slot(const Fingerprint& state) const { return state.low >> (64 - bits_); }
  void Grow() {
    const std::vector<Fingerprint> old = std::move(slots_);
    slots_.assign(size_t{1} << ++bits_, {});
    for (const Fingerprint& state : old) slots_[Slot(state)] = state;
  }

  int bits_ = kLeastBits;
  size_t added_ = 0;
  std::vector<Fingerprint> slots_;
};

}  // namespace memo::pack

#endif  // MEMO_PACK_FAILED_STATES_H_
