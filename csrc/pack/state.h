// A partial placement under exact search, with everything that can be undone.
#ifndef MEMO_PACK_STATE_H_
#define MEMO_PACK_STATE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pack/problem.h"

namespace memo::pack {

// Buffers are placed so that nothing placed later lies below them, so each buffer still to be
// placed has a floor: the lowest offset that what is known leaves to it.
class State {
 public:
  State(const Problem& problem, const Conflicts& conflicts);

  const Buffer& buffer(int32_t i) const { return problem_.buffers[i]; }
  // Lowest offset left to buffer `i`.
  int64_t floor(int32_t i) const { return floor_[i]; }
  // Whether something placed (or the ground) holds buffer `i` up at its floor. Only then may it be
  // placed there: in a placement that is pushed down as far as it goes, nothing hovers.
  bool rests(int32_t i) const { return support_[i] == floor_[i]; }
  bool placed(int32_t i) const { return placed_[i]; }
  // Units of unplaced buffers alive in a section.
  int64_t remaining(int32_t section) const { return remaining_[section]; }
  const Conflicts& conflicts() const { return conflicts_; }
  // The buffer that holds `i` up with exactly its own lifetime, or -1.
  int32_t twin_below(int32_t i) const { return twin_below_[i]; }

  // Fixes buffer `i` at its floor; everything unplaced that conflicts with it moves above it.
  void Place(int32_t i);
  // Raises buffer `i`'s floor.
  void Raise(int32_t i, int64_t floor);
  // Least offset of `i` if it has to stand on a buffer that is still to be placed and that is not
  // alive in `section` (-1: any). Returns `none` if there is no such buffer.
  int64_t Lifted(int32_t i, int32_t section, int64_t none) const;

  size_t mark() const { return trail_.size(); }
  void Undo(size_t mark);
  // Offsets of all buffers; meaningful once all are placed.
  const Offsets& offsets() const { return floor_; }

 private:
  struct Change {
    int32_t buffer;  // ~i: buffer i was placed
    int32_t twin;
    int64_t floor;
    int64_t support;
  };

  void Save(int32_t i) { trail_.push_back({i, twin_below_[i], floor_[i], support_[i]}); }
  bool SameLifetime(int32_t a, int32_t b) const {
    return buffer(a).first == buffer(b).first && buffer(a).last == buffer(b).last;
  }

  const Problem& problem_;
  const Conflicts& conflicts_;
  std::vector<int64_t> floor_;
  std::vector<int64_t> support_;
  std::vector<int32_t> twin_below_;
  std::vector<char> placed_;
  std::vector<int64_t> remaining_;
  std::vector<Change> trail_;
};

}  // namespace memo::pack

#endif  // MEMO_PACK_STATE_H_
