#include "pack/state.h"

#include <algorithm>

namespace memo::pack {

State::State(const Problem& problem, const Conflicts& conflicts)
    : problem_(problem),
      conflicts_(conflicts),
      floor_(problem.buffers.size(), 0),
      support_(problem.buffers.size(), 0),
      twin_below_(problem.buffers.size(), -1),
      placed_(problem.buffers.size(), 0),
      remaining_(problem.num_sections, 0) {
  for (const Buffer& buffer : problem.buffers) {
    for (int32_t s = buffer.first; s < buffer.last; ++s) remaining_[s] += buffer.size;
  }
}

void State::Place(int32_t i) {
  const Buffer& own = buffer(i);
  const int64_t top = floor_[i] + own.size;
  trail_.push_back({~i, -1, 0, 0});
  placed_[i] = 1;
  for (int32_t s = own.first; s < own.last; ++s) remaining_[s] -= own.size;
  for (const int32_t other : conflicts_.of(i)) {
    if (placed_[other] || support_[other] > top) continue;
    Save(other);
    support_[other] = top;
    floor_[other] = std::max(floor_[other], top);
    twin_below_[other] = SameLifetime(i, other) ? i : -1;
  }
}

void State::Raise(int32_t i, int64_t floor) {
  if (floor <= floor_[i]) return;
  Save(i);
  floor_[i] = floor;
}

int64_t State::Lifted(int32_t i, int32_t section, int64_t none) const {
  int64_t least = none;
  for (const int32_t other : conflicts_.of(i)) {
    const Buffer& below = buffer(other);
    if (placed_[other] || (below.first <= section && section < below.last)) continue;
    least = std::min(least, floor_[other] + below.size);
  }
  return least;
}

void State::Undo(size_t mark) {
  for (; trail_.size() > mark; trail_.pop_back()) {
    const Change& change = trail_.back();
    if (change.buffer < 0) {
      const int32_t i = ~change.buffer;
      const Buffer& own = buffer(i);
      placed_[i] = 0;
      for (int32_t s = own.first; s < own.last; ++s) remaining_[s] += own.size;
    } else {
      twin_below_[change.buffer] = change.twin;
      floor_[change.buffer] = change.floor;
      support_[change.buffer] = change.support;
    }
  }
}

}  // namespace memo::pack
