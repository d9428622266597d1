#include "pack/exact.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

namespace memo::pack {
namespace {

using Verdict = ExactSearch::Verdict;

// Floors and sizes may be added to it.
constexpr int64_t kNone = std::numeric_limits<int64_t>::max() / 4;
constexpr int32_t kBlocked = std::numeric_limits<int32_t>::max() / 2;
// Each level takes some 600 bytes of stack, of which a thread has 8 MiB.
constexpr int32_t kMostDepth = 6000;

// A partial placement under exact search, with everything that can be undone.
//
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

// Remembers states that were searched through in vain: a hash table of one slot a state, in which a
// newer state takes an older one's slot. It grows with use up to 2^kMostBits slots (16 MiB). That
// two states have one fingerprint, and so the search skips what it should not, is taken to be
// impossible (some 2^-128 for each pair).
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

// Sections with the least of this are decided first. `remaining` units are to be placed in the
// section, of which `choices` buffers (or none) may lie lowest.
double Urgency(Strategy::Pick pick, int64_t choices, int64_t remaining, int64_t capacity) {
  constexpr double kChoicesPerCapacity = 8;
  if (choices <= 1) return std::numeric_limits<double>::lowest();
  const double count = static_cast<double>(choices);
  const double fill = static_cast<double>(remaining) / static_cast<double>(capacity);
  switch (pick) {
    case Strategy::Pick::kFewest:
      return count;
    case Strategy::Pick::kFullest:
      return -fill;
    case Strategy::Pick::kFewFull:
      break;
  }
  return count - kChoicesPerCapacity * fill;
}

// The search itself, at one capacity.
class Search {
 public:
  Search(const Problem& problem, const Conflicts& conflicts, int64_t capacity);

  Verdict Run(const Strategy& strategy, int64_t max_nodes, const std::function<bool()>& stop);

  const Offsets& offsets() const { return state_.offsets(); }
  int64_t nodes() const { return nodes_; }

 private:
  // Unplaced buffers that belong together: active_[begin, end), alive in sections [first, last).
  struct Region {
    size_t begin, end;
    int32_t first, last;
  };

  Verdict Solve(const Region& region);
  Verdict Branch(const Region& region);
  Verdict SolveWithout(const Region& region, int32_t placed);
  Verdict SolveRaised(const Region& region, int32_t section, int64_t floor);

  bool Tighten(const Region& region);
  void Survey(const Region& region);
  bool LiftUnsupported(const Region& region);
  bool ExceedsCapacity(const Region& region);
  int32_t PickSection(const Region& region);
  bool MayLieLowest(int32_t i) const;
  int64_t FloorIfNoneLies(const Region& region, int32_t section) const;
  std::vector<int32_t> Choices(const Region& region, int32_t section);
  Fingerprint Describe(const Region& region) const;
  bool OutOfBudget();

  const Problem& problem_;
  State state_;
  const int64_t capacity_;
  FailedStates failed_;
  Strategy::Pick pick_ = Strategy::Pick::kFewest;
  std::vector<double> weight_;
  std::vector<int32_t> active_;
  std::vector<int32_t> by_floor_;
  // Per section, of the buffers unplaced in it: lowest floor; lowest end; scratch.
  std::vector<int64_t> lowest_;
  std::vector<int64_t> lowest_top_;
  std::vector<int64_t> filled_;
  std::vector<int32_t> num_choices_;
  int64_t nodes_ = 0;
  int64_t max_nodes_ = 0;
  int32_t depth_ = 0;
  bool gave_up_ = false;
  const std::function<bool()>* stop_ = nullptr;
};

Search::Search(const Problem& problem, const Conflicts& conflicts, int64_t capacity)
    : problem_(problem),
      state_(problem, conflicts),
      capacity_(capacity),
      lowest_(problem.num_sections),
      lowest_top_(problem.num_sections),
      filled_(problem.num_sections),
      num_choices_(problem.num_sections) {}

Verdict Search::Run(const Strategy& strategy, int64_t max_nodes,
                    const std::function<bool()>& stop) {
  weight_ = Strategy::Weights(problem_, strategy.preference, strategy.noise, strategy.seed);
  pick_ = strategy.pick;
  state_.Undo(0);
  max_nodes_ = nodes_ + max_nodes;
  gave_up_ = false;
  stop_ = &stop;
  active_.resize(problem_.buffers.size());
  for (size_t i = 0; i < active_.size(); ++i) active_[i] = static_cast<int32_t>(i);
  return Solve({0, active_.size(), 0, problem_.num_sections});
}

bool Search::OutOfBudget() {
  ++nodes_;
  gave_up_ = gave_up_ || nodes_ >= max_nodes_ || depth_ > kMostDepth || (*stop_)();
  return gave_up_;
}

Verdict Search::Solve(const Region& region) {
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
  // What was not searched through refutes nothing.
  if (gave_up_ && verdict == Verdict::kImpossible) verdict = Verdict::kGaveUp;
  if (verdict != Verdict::kFound) state_.Undo(mark);
  return verdict;
}

// Raises floors until nothing changes, or time is over; false if the region cannot fit any more.
bool Search::Tighten(const Region& region) {
  do {
    Survey(region);
    if (ExceedsCapacity(region)) return false;
    gave_up_ = gave_up_ || (*stop_)();
  } while (!gave_up_ && LiftUnsupported(region));
  return true;
}

void Search::Survey(const Region& region) {
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
bool Search::LiftUnsupported(const Region& region) {
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
bool Search::ExceedsCapacity(const Region& region) {
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

Fingerprint Search::Describe(const Region& region) const {
  Fingerprint print;
  for (size_t k = region.begin; k < region.end; ++k) {
    const int32_t i = active_[k];
    const uint64_t rests = state_.rests(i);
    print.Add(static_cast<uint64_t>(i), static_cast<uint64_t>(state_.floor(i)) * 2 + rests);
  }
  return print;
}

// Whether nothing that is unplaced could still come to lie below buffer `i` at its floor.
bool Search::MayLieLowest(int32_t i) const {
  const Buffer& buffer = state_.buffer(i);
  const int64_t floor = state_.floor(i);
  for (int32_t s = buffer.first; s < buffer.last; ++s) {
    if (lowest_top_[s] <= floor) return false;
  }
  return true;
}

// The section with the fewest choices, or -1 if some section has none.
int32_t Search::PickSection(const Region& region) {
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

std::vector<int32_t> Search::Choices(const Region& region, int32_t section) {
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
int64_t Search::FloorIfNoneLies(const Region& region, int32_t section) const {
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

Verdict Search::Branch(const Region& region) {
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
Verdict Search::SolveWithout(const Region& region, int32_t placed) {
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
  // The smallest first: where one fails, the others need not be tried.
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

Verdict Search::SolveRaised(const Region& region, int32_t section, int64_t floor) {
  const size_t mark = state_.mark();
  for (size_t k = region.begin; k < region.end; ++k) {
    const Buffer& buffer = state_.buffer(active_[k]);
    if (buffer.first <= section && section < buffer.last) state_.Raise(active_[k], floor);
  }
  const Verdict verdict = Solve(region);
  if (verdict != Verdict::kFound) state_.Undo(mark);
  return verdict;
}

}  // namespace

class ExactSearch::Impl : public Search {
 public:
  using Search::Search;
};

ExactSearch::ExactSearch(const Problem& problem, const Conflicts& conflicts, int64_t capacity)
    : impl_(std::make_unique<Impl>(problem, conflicts, capacity)) {}
ExactSearch::~ExactSearch() = default;
ExactSearch::ExactSearch(ExactSearch&&) noexcept = default;

ExactSearch::Verdict ExactSearch::Run(const Strategy& strategy, int64_t max_nodes,
                                      const std::function<bool()>& stop) {
  return impl_->Run(strategy, max_nodes, stop);
}

const Offsets& ExactSearch::offsets() const { return impl_->offsets(); }

int64_t ExactSearch::nodes() const { return impl_->nodes(); }

}  // namespace memo::pack
