#include "pack/exact.h"

#include <algorithm>
#include <limits>

namespace memo::pack {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max() / 4;
constexpr int32_t kBlocked = std::numeric_limits<int32_t>::max() / 2;
// Each level takes some 600 bytes of stack, of which a thread has 8 MiB.
constexpr int32_t kMostDepth = 6000;

}  // namespace

ExactSearch::ExactSearch(const Problem& problem, const Conflicts& conflicts, int64_t capacity)
    : problem_(problem),
      state_(problem, conflicts),
      capacity_(capacity),
      lowest_(problem.num_sections),
      lowest_top_(problem.num_sections),
      filled_(problem.num_sections),
      num_choices_(problem.num_sections) {}

Verdict ExactSearch::Run(const Strategy& strategy, int64_t max_nodes,
                         const std::function<bool()>& stop) {
  weight_ = Weights(problem_, strategy.preference, strategy.noise, strategy.seed);
  pick_ = strategy.pick;
  state_.Undo(0);
  max_nodes_ = nodes_ + max_nodes;
  gave_up_ = false;
  stop_ = &stop;
  active_.resize(problem_.buffers.size());
  for (size_t i = 0; i < active_.size(); ++i) active_[i] = static_cast<int32_t>(i);
  return Solve({0, active_.size(), 0, problem_.num_sections});
}

bool ExactSearch::OutOfBudget() {
  ++nodes_;
  gave_up_ = gave_up_ || nodes_ >= max_nodes_ || depth_ > kMostDepth || (*stop_)();
  return gave_up_;
}

Verdict ExactSearch::Solve(const Region& region) {
  if (region.begin == region.end) return Verdict::kFound;
  if (OutOfBudget()) return Verdict::kGaveUp;
  const size_t mark = state_.mark();
  Verdict verdict = Verdict::kImpossible;
  ++depth_;
  if (Tighten(region) && !gave_up_) {
    const Fingerprint here = Describe(region);
    if (!failed_.Has(here)) {
      verdict = Branch(region);
      if (verdict == Verdict::kImpossible) failed_.Add(here);
    }
  }
  --depth_;
  if (gave_up_ && verdict == Verdict::kImpossible) verdict = Verdict::kGaveUp;
  if (verdict != Verdict::kFound) state_.Undo(mark);
  return verdict;
}

// Raises floors until nothing changes, or time is over; false if the region cannot fit any more.
bool ExactSearch::Tighten(const Region& region) {
  do {
    Survey(region);
    if (ExceedsCapacity(region)) return false;
    gave_up_ = gave_up_ || (*stop_)();
  } while (!gave_up_ && LiftUnsupported(region));
  return true;
}

void ExactSearch::Survey(const Region& region) {
  std::fill(lowest_.begin() + region.first, lowest_.begin() + region.last, kNone);
  std::fill(lowest_top_.begin() + region.first, lowest_top_.begin() + region.last, kNone);
  for (size_t k = region.begin; k < region.end; ++k) {
    const int32_t i = active_[k];
    const Buffer& buffer = state_.buffer(i);
    const int64_t floor = state_.floor(i), top = floor + buffer.size;
    for (int32_t s = buffer.first; s < buffer.last; ++s) {
      lowest_[s] = std::min(lowest_[s], floor);
      lowest_top_[s] = std::min(lowest_top_[s], top);
    }
  }
}

// Buffers whose floor was raised by more than what is placed must stand on something unplaced.
bool ExactSearch::LiftUnsupported(const Region& region) {
  bool raised = false;
  for (size_t k = region.begin; k < region.end; ++k) {
    const int32_t i = active_[k];
    if (state_.rests(i)) continue;
    const int64_t lifted = state_.Lifted(i, -1, kNone);
    raised |= lifted > state_.floor(i);
    state_.Raise(i, lifted);
  }
  return raised;
}

// In each section: whatever is unplaced and has a floor of at least f ends at f + its sum or above.
bool ExactSearch::ExceedsCapacity(const Region& region) {
  for (int32_t s = region.first; s < region.last; ++s) {
    if (lowest_[s] != kNone && lowest_[s] + state_.remaining(s) > capacity_) return true;
    filled_[s] = 0;
  }
  by_floor_.assign(active_.begin() + static_cast<ptrdiff_t>(region.begin),
                   active_.begin() + static_cast<ptrdiff_t>(region.end));
  std::sort(by_floor_.begin(), by_floor_.end(),
            [&](int32_t a, int32_t b) { return state_.floor(a) > state_.floor(b); });
  for (const int32_t i : by_floor_) {
    const Buffer& buffer = state_.buffer(i);
    int64_t most = 0;
    for (int32_t s = buffer.first; s < buffer.last; ++s) {
      filled_[s] += buffer.size;
      most = std::max(most, filled_[s]);
    }
    if (state_.floor(i) + most > capacity_) return true;
  }
  return false;
}

Fingerprint ExactSearch::Describe(const Region& region) const {
  Fingerprint print;
  for (size_t k = region.begin; k < region.end; ++k) {
    const int32_t i = active_[k];
    const uint64_t rests = state_.rests(i);
    print.Add(static_cast<uint64_t>(i), static_cast<uint64_t>(state_.floor(i)) * 2 + rests);
  }
  return print;
}

// Whether nothing that is unplaced could still come to lie below buffer `i` at its floor.
bool ExactSearch::MayLieLowest(int32_t i) const {
  const Buffer& buffer = state_.buffer(i);
  const int64_t floor = state_.floor(i);
  for (int32_t s = buffer.first; s < buffer.last; ++s) {
    if (lowest_top_[s] <= floor) return false;
  }
  return true;
}

// The section with the fewest choices, or -1 if some section has none.
int32_t ExactSearch::PickSection(const Region& region) {
  std::fill(num_choices_.begin() + region.first, num_choices_.begin() + region.last, 0);
  for (size_t k = region.begin; k < region.end; ++k) {
    const int32_t i = active_[k];
    const Buffer& buffer = state_.buffer(i);
    const int64_t floor = state_.floor(i);
    const int32_t count = MayLieLowest(i) ? state_.rests(i) : kBlocked;
    for (int32_t s = buffer.first; s < buffer.last; ++s) {
      if (lowest_[s] == floor && num_choices_[s] < kBlocked) num_choices_[s] += count;
    }
  }
  int32_t best = -1;
  double best_urgency = 0;
  int64_t best_slack = 0;
  for (int32_t s = region.first; s < region.last; ++s) {
    if (lowest_[s] == kNone || num_choices_[s] >= kBlocked) continue;
    const int64_t remaining = state_.remaining(s), slack = capacity_ - lowest_[s] - remaining;
    const int64_t choices = num_choices_[s] + (slack > 0);
    if (choices == 0) return -1;
    const double urgency = Urgency(pick_, choices, remaining, capacity_);
    if (best < 0 || urgency < best_urgency || (urgency == best_urgency && slack < best_slack)) {
      best = s, best_urgency = urgency, best_slack = slack;
    }
  }
  return best;
}

std::vector<int32_t> ExactSearch::Choices(const Region& region, int32_t section) {
  std::vector<int32_t> choices;
  for (size_t k = region.begin; k < region.end; ++k) {
    const int32_t i = active_[k];
    const Buffer& buffer = state_.buffer(i);
    if (section < buffer.first || section >= buffer.last) continue;
    if (state_.floor(i) != lowest_[section] || !state_.rests(i)) continue;
    // Of two buffers of one lifetime on top of each other, the one with the lower number is below.
    if (state_.twin_below(i) > i) continue;
    const auto same = [&](int32_t j) {
      const Buffer& other = state_.buffer(j);
      return other.first == buffer.first && other.last == buffer.last && other.size == buffer.size;
    };
    if (std::none_of(choices.begin(), choices.end(), same)) choices.push_back(i);
  }
  std::stable_sort(choices.begin(), choices.end(),
                   [&](int32_t a, int32_t b) { return weight_[a] > weight_[b]; });
  return choices;
}

// The least floor of `section` if no buffer lies at its present floor: the lowest buffer there then
// starts higher, or is lifted by one that is not alive in the section.
int64_t ExactSearch::FloorIfNoneLies(const Region& region, int32_t section) const {
  int64_t floor = kNone;
  for (size_t k = region.begin; k < region.end; ++k) {
    const int32_t i = active_[k];
    const Buffer& buffer = state_.buffer(i);
    if (section < buffer.first || section >= buffer.last) continue;
    const bool higher = state_.floor(i) > lowest_[section];
    floor = std::min(floor, higher ? state_.floor(i) : state_.Lifted(i, section, kNone));
  }
  return floor;
}

Verdict ExactSearch::Branch(const Region& region) {
  const int32_t section = PickSection(region);
  if (section < 0) return Verdict::kImpossible;
  const int64_t slack_floor = capacity_ - state_.remaining(section);
  const int64_t raised = FloorIfNoneLies(region, section);
  for (const int32_t i : Choices(region, section)) {
    const Verdict verdict = SolveWithout(region, i);
    if (verdict != Verdict::kImpossible) return verdict;
  }
  if (raised > slack_floor) return Verdict::kImpossible;
  return SolveRaised(region, section, raised);
}

// Places a buffer and solves the parts of time that it leaves, each on its own.
Verdict ExactSearch::SolveWithout(const Region& region, int32_t placed) {
  const size_t mark = state_.mark(), base = active_.size();
  state_.Place(placed);
  std::vector<Region> parts;
  int32_t reach = -1;
  for (size_t k = region.begin; k < region.end; ++k) {
    const int32_t i = active_[k];
    if (i == placed) continue;
    const Buffer& buffer = state_.buffer(i);
    if (buffer.first >= reach) parts.push_back({active_.size(), 0, buffer.first, 0});
    active_.push_back(i);
    reach = std::max(reach, buffer.last);
    parts.back().end = active_.size();
    parts.back().last = reach;
  }
  std::stable_sort(parts.begin(), parts.end(), [](const Region& a, const Region& b) {
    return a.end - a.begin < b.end - b.begin;
  });
  Verdict verdict = Verdict::kFound;
  for (const Region& part : parts) {
    verdict = Solve(part);
    if (verdict != Verdict::kFound) break;
  }
  active_.resize(base);
  if (verdict != Verdict::kFound) state_.Undo(mark);
  return verdict;
}

Verdict ExactSearch::SolveRaised(const Region& region, int32_t section, int64_t floor) {
  const size_t mark = state_.mark();
  for (size_t k = region.begin; k < region.end; ++k) {
    const Buffer& buffer = state_.buffer(active_[k]);
    if (buffer.first <= section && section < buffer.last) state_.Raise(active_[k], floor);
  }
  const Verdict verdict = Solve(region);
  if (verdict != Verdict::kFound) state_.Undo(mark);
  return verdict;
}

}  // namespace memo::pack
