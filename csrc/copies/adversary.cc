#include "copies/adversary.h"

#include <algorithm>

namespace memo {
namespace {

constexpr size_t kMostRanges = 8;
constexpr double kMomentSeconds = 5e-3;
constexpr double kLongSeconds = 2.0;

}  // namespace

Adversary::Adversary(uint64_t seed, int stream)
    : random_(seed * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(stream)) {}

double Adversary::HoldSeconds() {
  const size_t kind = Below(8);
  if (kind == 0) return 0;
  const double most = kind <= 3 ? kMomentSeconds : kLongSeconds;
  const double least = kind <= 3 ? 0 : kLongSeconds / 2;
  return least + (most - least) * static_cast<double>(Below(1000)) / 1000;
}

std::vector<Adversary::Range> Adversary::Ranges(size_t bytes) {
  std::vector<size_t> cuts = {0, bytes};
  for (size_t i = 1 + Below(kMostRanges); i > 1; --i) cuts.push_back(Below(bytes + 1));
  std::sort(cuts.begin(), cuts.end());
  std::vector<Range> ranges;
  for (size_t i = 1; i < cuts.size(); ++i) {
    if (cuts[i - 1] < cuts[i]) ranges.emplace_back(cuts[i - 1], cuts[i]);
  }
  for (size_t i = ranges.size(); i > 1; --i) std::swap(ranges[i - 1], ranges[Below(i)]);
  return ranges;
}

size_t Adversary::Below(size_t limit) { return static_cast<size_t>(random_() % limit); }

}  // namespace memo
