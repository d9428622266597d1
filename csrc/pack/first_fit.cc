#include "pack/first_fit.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "pack/strategy.h"

namespace memo::pack {
namespace {

// Disjoint taken ranges [start, stop), from the lowest up.
using Taken = std::vector<std::pair<int64_t, int64_t>>;

int64_t LowestGap(const Taken& taken, int64_t size) {
  int64_t offset = 0;
  for (const auto& [start, stop] : taken) {
    if (start - offset >= size) break;
    offset = stop;
  }
  return offset;
}

void Take(Taken& taken, int64_t start, int64_t stop) {
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

Order Descending(const std::vector<double>& weight) {
  Order order(weight.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return weight[a] > weight[b]; });
  return order;
}

}  // namespace

std::vector<Order> FirstFitOrders(const Problem& problem) {
  constexpr Preference kPreferences[] = {
      Preference::kContestedLifetime, Preference::kSize,          Preference::kContestedArea,
      Preference::kLifetime,          Preference::kContestedSize, Preference::kArea,
  };
  std::vector<Order> orders;
  for (const Preference preference : kPreferences) {
    orders.push_back(Descending(Weights(problem, preference)));
  }
  return orders;
}

Offsets FirstFit(const Problem& problem, const Conflicts& conflicts, const Order& order) {
  constexpr int64_t kUnplaced = -1;
  Offsets offsets(problem.buffers.size(), kUnplaced);
  std::vector<Taken> taken(problem.buffers.size());
  for (const int32_t i : order) {
    const int64_t size = problem.buffers[i].size;
    offsets[i] = LowestGap(taken[i], size);
    taken[i] = Taken();
    for (const int32_t other : conflicts.of(i)) {
      if (offsets[other] == kUnplaced) Take(taken[other], offsets[i], offsets[i] + size);
    }
  }
  return offsets;
}

void PromoteHighest(const Problem& problem, const Offsets& offsets, int64_t target, Order& order) {
  std::stable_partition(order.begin(), order.end(),
                        [&](int32_t i) { return offsets[i] + problem.buffers[i].size > target; });
}

}  // namespace memo::pack
