#include "pack/problem.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace memo::pack {
namespace {

std::vector<int32_t> ByTime(const std::vector<int64_t>& time) {
  std::vector<int32_t> order(time.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return time[a] < time[b]; });
  return order;
}

}  // namespace

Problem Problem::OfLifetimes(const std::vector<int64_t>& lower, const std::vector<int64_t>& upper,
                             const std::vector<int64_t>& size) {
  const std::vector<int32_t> starts = ByTime(lower), stops = ByTime(upper);
  Problem problem;
  problem.buffers.resize(size.size());
  int32_t section = 0;
  bool ended = false;  // a buffer ended since the last one began: the next one opens a section
  size_t next_stop = 0;
  for (const int32_t begun : starts) {
    for (; upper[stops[next_stop]] <= lower[begun]; ++next_stop, ended = true) {
      problem.buffers[stops[next_stop]].last = section + 1;
    }
    section += ended;
    ended = false;
    problem.buffers[begun] = {section, 0, size[begun]};
  }
  for (; next_stop < stops.size(); ++next_stop) {
    problem.buffers[stops[next_stop]].last = section + 1;
  }
  problem.num_sections = size.empty() ? 0 : section + 1;
  return problem;
}

std::vector<int32_t> Problem::ByFirstSection() const {
  std::vector<int32_t> order(buffers.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return buffers[a].first < buffers[b].first; });
  return order;
}

Merged::Merged(const Problem& original) {
  const std::vector<Buffer>& buffers = original.buffers;
  std::vector<int32_t> order(buffers.size());
  std::iota(order.begin(), order.end(), 0);
  const auto lifetime = [&](int32_t i) { return std::pair(buffers[i].first, buffers[i].last); };
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return lifetime(a) < lifetime(b); });
  stack_of.resize(buffers.size());
  within.resize(buffers.size());
  std::vector<Buffer>& stacks = problem.buffers;
  for (size_t k = 0; k < order.size(); ++k) {
    const int32_t i = order[k];
    if (k == 0 || lifetime(order[k - 1]) != lifetime(i)) {
      stacks.push_back({buffers[i].first, buffers[i].last, 0});
    }
    stack_of[i] = static_cast<int32_t>(stacks.size()) - 1;
    within[i] = stacks.back().size;
    stacks.back().size += buffers[i].size;
  }
  problem.num_sections = original.num_sections;
}

Offsets Merged::Unmerged(const Offsets& stacks) const {
  Offsets offsets = within;
  for (size_t i = 0; i < offsets.size(); ++i) offsets[i] += stacks[stack_of[i]];
  return offsets;
}

std::vector<int64_t> Problem::Load() const {
  std::vector<int64_t> load(num_sections + 1, 0);
  for (const Buffer& buffer : buffers) {
    load[buffer.first] += buffer.size;
    load[buffer.last] -= buffer.size;
  }
  std::partial_sum(load.begin(), load.end(), load.begin());
  load.pop_back();
  for (size_t s = 0; s < base.size(); ++s) load[s] += base[s];
  return load;
}

int64_t Problem::LowerBound() const {
  const std::vector<int64_t> load = Load();
  return load.empty() ? 0 : *std::max_element(load.begin(), load.end());
}

int64_t Problem::Peak(const Offsets& offsets) const {
  int64_t peak = 0;
  for (size_t i = 0; i < offsets.size(); ++i) {
    peak = std::max(peak, offsets[i] + buffers[i].size);
  }
  return peak;
}

Conflicts::Conflicts(const Problem& problem, bool with_whole)
    : start_(problem.buffers.size() + 1, 0) {
  const std::vector<Buffer>& buffers = problem.buffers;
  const std::vector<int32_t> order = problem.ByFirstSection();
  const auto for_each_pair = [&](auto visit) {
    std::vector<int32_t> alive;
    for (const int32_t i : order) {
      if (!with_whole && problem.IsWhole(buffers[i])) continue;
      const auto gone = [&](int32_t j) { return buffers[j].last <= buffers[i].first; };
      alive.erase(std::remove_if(alive.begin(), alive.end(), gone), alive.end());
      for (const int32_t j : alive) visit(j, i);
      alive.push_back(i);
    }
  };
  // Twice the same walk, so that no list of pairs has to be held beside the entries.
  for_each_pair([&](int32_t a, int32_t b) { ++start_[a + 1], ++start_[b + 1]; });
  std::partial_sum(start_.begin(), start_.end(), start_.begin());
  entries_.resize(start_.back());
  std::vector<size_t> next(start_.begin(), start_.end() - 1);
  for_each_pair([&](int32_t a, int32_t b) { entries_[next[a]++] = b, entries_[next[b]++] = a; });
}

int64_t Conflicts::Count(const Problem& problem, bool with_whole) {
  std::vector<int64_t> begun(problem.num_sections + 1, 0), ended(problem.num_sections + 1, 0);
  for (const Buffer& buffer : problem.buffers) {
    if (with_whole || !problem.IsWhole(buffer)) ++begun[buffer.first], ++ended[buffer.last];
  }
  int64_t alive = 0, pairs = 0;
  for (int32_t section = 0; section < problem.num_sections; ++section) {
    alive -= ended[section];
    pairs += begun[section] * alive + begun[section] * (begun[section] - 1) / 2;
    alive += begun[section];
  }
  return pairs;
}

}  // namespace memo::pack
