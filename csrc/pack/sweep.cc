#include "pack/sweep.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>

namespace memo::pack {
namespace {

// Free ranges below an open end, findable by place and by size.
class Holes {
 public:
  int64_t Take(int64_t size) {
    const auto fit = by_size_.lower_bound({size, 0});
    if (fit == by_size_.end()) return Extend(size);
    const auto [hole, start] = *fit;
    Remove(start, hole);
    if (hole > size) Insert(start + size, hole - size);
    return start;
  }

  void Give(int64_t start, int64_t size) {
    const auto next = by_start_.find(start + size);
    if (next != by_start_.end()) {
      const int64_t more = next->second;
      Remove(start + size, more);
      size += more;
    }
    const auto after = by_start_.lower_bound(start);
    if (after != by_start_.begin()) {
      const auto [before, bytes] = *std::prev(after);
      if (before + bytes == start) {
        Remove(before, bytes);
        start = before;
        size += bytes;
      }
    }
    Insert(start, size);
  }

 private:
  // No hole holds `size`: the last one is lengthened if it reaches the end.
  int64_t Extend(int64_t size) {
    int64_t start = end_;
    if (!by_start_.empty()) {
      const auto [last, bytes] = *by_start_.rbegin();
      if (last + bytes == end_) {
        start = last;
        Remove(last, bytes);
      }
    }
    end_ = start + size;
    return start;
  }
  void Insert(int64_t start, int64_t size) {
    by_start_[start] = size;
    by_size_.insert({size, start});
  }
  void Remove(int64_t start, int64_t size) {
    by_start_.erase(start);
    by_size_.erase({size, start});
  }

  std::map<int64_t, int64_t> by_start_;
  std::set<std::pair<int64_t, int64_t>> by_size_;
  int64_t end_ = 0;
};

// Highest value of a range of sections, where whole ranges are raised to a value.
class Skyline {
 public:
  explicit Skyline(int32_t num_sections) {
    while (leaves_ < num_sections) leaves_ *= 2;
    most_.assign(2 * leaves_, 0);
    whole_.assign(2 * leaves_, 0);
  }

  int64_t Most(const Buffer& range) const { return Most(1, 0, leaves_, range); }
  void Raise(const Buffer& range, int64_t height) { Raise(1, 0, leaves_, range, height); }

 private:
  int64_t Most(int32_t node, int32_t first, int32_t last, const Buffer& range) const {
    if (range.last <= first || last <= range.first) return 0;
    if (range.first <= first && last <= range.last) return most_[node];
    const int32_t middle = (first + last) / 2;
    const int64_t below =
        std::max(Most(2 * node, first, middle, range), Most(2 * node + 1, middle, last, range));
    return std::max(whole_[node], below);
  }

  void Raise(int32_t node, int32_t first, int32_t last, const Buffer& range, int64_t height) {
    if (range.last <= first || last <= range.first) return;
    most_[node] = std::max(most_[node], height);
    if (range.first <= first && last <= range.last) {
      whole_[node] = std::max(whole_[node], height);
      return;
    }
    const int32_t middle = (first + last) / 2;
    Raise(2 * node, first, middle, range, height);
    Raise(2 * node + 1, middle, last, range, height);
  }

  int32_t leaves_ = 1;
  std::vector<int64_t> most_;   // highest in any section of the node
  std::vector<int64_t> whole_;  // height to which all of the node was raised
};

template <typename Less>
std::vector<int32_t> Sorted(const Problem& problem, Less less) {
  std::vector<int32_t> order(problem.buffers.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return less(problem.buffers[a], problem.buffers[b]);
  });
  return order;
}

}  // namespace

Offsets BestFitInTime(const Problem& problem) {
  const auto starts =
      Sorted(problem, [](const Buffer& a, const Buffer& b) { return a.first < b.first; });
  const auto stops =
      Sorted(problem, [](const Buffer& a, const Buffer& b) { return a.last < b.last; });
  Holes holes;
  Offsets offsets(problem.buffers.size());
  auto next = stops.begin();
  for (const int32_t i : starts) {
    for (; problem.buffers[*next].last <= problem.buffers[i].first; ++next) {
      holes.Give(offsets[*next], problem.buffers[*next].size);
    }
    offsets[i] = holes.Take(problem.buffers[i].size);
  }
  return offsets;
}

Offsets LongestOnSkyline(const Problem& problem) {
  Skyline skyline(problem.num_sections);
  Offsets offsets(problem.buffers.size());
  const auto longer = [](const Buffer& a, const Buffer& b) {
    return a.last - a.first > b.last - b.first;
  };
  for (const int32_t i : Sorted(problem, longer)) {
    const Buffer& buffer = problem.buffers[i];
    offsets[i] = skyline.Most(buffer);
    skyline.Raise(buffer, offsets[i] + buffer.size);
  }
  return offsets;
}

}  // namespace memo::pack
