#include "pack/first_fit.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>

#include "pack/strategy.h"

namespace memo::pack {
namespace {

using Preference = Strategy::Preference;

// Buffers in the order in which they are placed.
using Order = std::vector<int32_t>;

// The lowest gap in two sets of taken ranges.
int64_t LowestGap(const Ranges& a, const Ranges& b, int64_t size) {
  int64_t offset = 0;
  for (auto i = a.begin(), j = b.begin(); i != a.end() || j != b.end();) {
    const bool is_a = j == b.end() || (i != a.end() && i->first < j->first);
    const auto [start, stop] = is_a ? *i++ : *j++;
    if (start - offset >= size) break;
    offset = std::max(offset, stop);
  }
  return offset;
}

Order Descending(const std::vector<double>& weight) {
  Order order(weight.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return weight[a] > weight[b]; });
  return order;
}

// Of the orders of first fit; the first one gains most from promotions.
constexpr Preference kPreferences[] = {
    Preference::kContestedLifetime, Preference::kSize,          Preference::kContestedArea,
    Preference::kLifetime,          Preference::kContestedSize, Preference::kArea,
};

// So three turns of four are the first one's.
size_t OrderOfFit(int64_t fit) {
  if (fit % 4 != 1) return 0;
  return 1 + static_cast<size_t>(fit / 4) % (std::size(kPreferences) - 1);
}

// Moves the buffers that end above `target` to the front: what found no room in its turn has it
// next time. ("Squeaky wheel" optimisation, Joslin and Clements, JAIR 1999.)
void PromoteHighest(const Problem& problem, const Offsets& offsets, int64_t target, Order& order) {
  std::stable_partition(order.begin(), order.end(),
                        [&](int32_t i) { return offsets[i] + problem.buffers[i].size > target; });
}

// Costs at most one small insertion for each conflict. Buffers that live in all sections need none
// in `conflicts`.
Offsets FirstFit(const Problem& problem, const Conflicts& conflicts, const Order& order,
                 Obstacles obstacles) {
  constexpr int64_t kUnplaced = -1;
  Offsets offsets(problem.buffers.size(), kUnplaced);
  Ranges& of_all = obstacles.of_all;
  std::vector<Ranges>& of_each = obstacles.of_each;
  Ranges anywhere = of_all;  // taken in any section
  for (const int32_t i : order) {
    const bool is_whole = problem.IsWhole(problem.buffers[i]);
    const int64_t size = problem.buffers[i].size;
    const int64_t start = LowestGap(is_whole ? anywhere : of_all, of_each[i], size);
    offsets[i] = start;
    of_each[i] = Ranges();
    Take(anywhere, start, start + size);
    if (is_whole) {
      Take(of_all, start, start + size);
      continue;
    }
    for (const int32_t other : conflicts.of(i)) {
      if (offsets[other] == kUnplaced) Take(of_each[other], start, start + size);
    }
  }
  return offsets;
}

}  // namespace

void Take(Ranges& taken, int64_t start, int64_t stop) {
  const auto touches = [](const std::pair<int64_t, int64_t>& range, int64_t value) {
    return range.second < value;
  };
  const auto first = std::lower_bound(taken.begin(), taken.end(), start, touches);
  auto last = first;
  for (; last != taken.end() && last->first <= stop; ++last) {
    start = std::min(start, last->first);
    stop = std::max(stop, last->second);
  }
  if (first == last) {
    taken.insert(first, {start, stop});
  } else {
    *first = {start, stop};
    taken.erase(first + 1, last);
  }
}

void FitInOrders(const Problem& problem, const Conflicts& conflicts, const Obstacles& obstacles,
                 const Fits& fits, const std::function<bool()>& stop, Offsets& best) {
  Order orders[std::size(kPreferences)];
  int64_t lowest = best.empty() ? std::numeric_limits<int64_t>::max() : problem.Peak(best);
  for (int64_t fit = 0; fit < fits.most && lowest > fits.target; ++fit) {
    if (!best.empty() && stop()) return;
    const size_t k = OrderOfFit(fit);
    Order& order = orders[k];
    if (order.empty()) order = Descending(Strategy::Weights(problem, kPreferences[k]));
    Offsets found = FirstFit(problem, conflicts, order, obstacles);
    PromoteHighest(problem, found, fits.target, order);
    const int64_t peak = problem.Peak(found);
    if (peak < lowest) best = std::move(found), lowest = peak;
  }
}

}  // namespace memo::pack
