#include "sim/access_history.h"

#include <algorithm>
#include <iterator>

namespace sim {

void AccessHistory::SplitAt(uintptr_t place) {
  auto found = segments_.upper_bound(place);
  if (found == segments_.begin()) return;
  --found;
  if (found->first == place || found->second.end <= place) return;
  Segment right = found->second;
  found->second.end = place;
  segments_.emplace(place, std::move(right));
}

void AccessHistory::Cover(Range range) {
  SplitAt(range.begin);
  SplitAt(range.end);
  uintptr_t place = range.begin;
  while (place < range.end) {
    const auto next = segments_.lower_bound(place);
    if (next != segments_.end() && next->first == place) {
      place = next->second.end;
      continue;
    }
    const uintptr_t end = next == segments_.end() ? range.end : std::min(range.end, next->first);
    segments_[place].end = end;
    place = end;
  }
}

std::optional<Access> AccessHistory::Note(Range range, const Access& access,
                                          const VectorClock& clock) {
  Cover(range);
  std::optional<Access> conflict;
  const auto check = [&](const Access& earlier) {
    if (!clock.Covers(earlier.epoch)) conflict = earlier;
  };
  const auto end = segments_.lower_bound(range.end);
  for (auto it = segments_.lower_bound(range.begin); it != end; ++it) {
    Segment& segment = it->second;
    if (segment.write) check(*segment.write);
    if (access.writes) {
      for (const Access& read : segment.reads) check(read);
      segment.write = access;
      segment.reads.clear();
      continue;
    }
    // A read that this one is ordered after stands for nothing that this one does not.
    const auto known = [&](const Access& read) { return clock.Covers(read.epoch); };
    segment.reads.erase(std::remove_if(segment.reads.begin(), segment.reads.end(), known),
                        segment.reads.end());
    segment.reads.push_back(access);
  }
  return conflict;
}

void AccessHistory::Forget(Range range) {
  SplitAt(range.begin);
  SplitAt(range.end);
  segments_.erase(segments_.lower_bound(range.begin), segments_.lower_bound(range.end));
}

}  // namespace sim
