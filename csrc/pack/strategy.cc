#include "pack/strategy.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <random>

namespace memo::pack {
namespace {

using Preference = Strategy::Preference;

// Most units alive in any section of each buffer, as a share of the most in all.
std::vector<double> Contention(const Problem& problem) {
  const std::vector<int64_t> live = problem.Load();
  const double most = static_cast<double>(*std::max_element(live.begin(), live.end()));
  std::vector<double> contention;
  for (const Buffer& buffer : problem.buffers) {
    const auto peak = std::max_element(live.begin() + buffer.first, live.begin() + buffer.last);
    contention.push_back(static_cast<double>(*peak) / most);
  }
  return contention;
}

double WeightOf(const Buffer& buffer, Preference preference) {
  const double lifetime = buffer.last - buffer.first, size = static_cast<double>(buffer.size);
  switch (preference) {
    case Preference::kContestedArea:
    case Preference::kArea:
      return size * lifetime;
    case Preference::kContestedSize:
    case Preference::kSize:
      return size;
    case Preference::kLastSection:
      return buffer.last;
    case Preference::kLifetime:
    case Preference::kContestedLifetime:
      return lifetime;
    case Preference::kRandom:
      break;
  }
  return 1;
}

bool IsContested(Preference preference) {
  return preference == Preference::kContestedArea || preference == Preference::kContestedSize ||
         preference == Preference::kContestedLifetime;
}

}  // namespace

Strategy Strategy::OfRound(int64_t round, uint64_t seed) {
  constexpr Preference kPreferences[] = {
      Preference::kArea,        Preference::kContestedArea, Preference::kContestedSize,
      Preference::kLastSection, Preference::kLifetime,      Preference::kRandom,
  };
  constexpr Pick kPicks[] = {Pick::kFewest, Pick::kFewFull, Pick::kFullest};
  constexpr double kNoise = 0.2;
  constexpr int64_t kNumPicks = std::size(kPicks), kNumPreferences = std::size(kPreferences);
  static_assert(kNumPicks * kNumPreferences == kCount);
  const int64_t preference = (round / kNumPicks) % kNumPreferences;
  const double noise = round < kCount ? 0 : kNoise;
  return {kPicks[round % kNumPicks], kPreferences[preference], noise,
          seed + static_cast<uint64_t>(round)};
}

std::vector<double> Strategy::Weights(const Problem& problem, Preference preference, double noise,
                                      uint64_t seed) {
  constexpr double kContentionFirst = 1e6;  // what it is added to is at most 1 and half the noise
  constexpr double kContentionSteps = 50;
  std::vector<double> contention =
      IsContested(preference) ? Contention(problem) : std::vector<double>();
  if (preference == Preference::kContestedLifetime) {
    for (double& share : contention) share = std::floor(share * kContentionSteps);
  }
  std::vector<double> weights;
  double greatest = 0;
  for (const Buffer& buffer : problem.buffers) {
    weights.push_back(WeightOf(buffer, preference));
    greatest = std::max(greatest, weights.back());
  }
  for (double& weight : weights) weight *= 1 / greatest;
  if (preference == Preference::kRandom || noise > 0) {
    std::mt19937_64 random(seed);
    for (double& weight : weights) {
      // 53 bits over 2^53: exact in a double. The standard's distributions are left to each
      // library, and a seed is to give one search everywhere.
      const double chance = static_cast<double>(random() >> 11) / 9007199254740992.0;
      weight *= preference == Preference::kRandom ? chance : 1 + noise * (chance - 0.5);
    }
  }
  for (size_t i = 0; i < contention.size(); ++i) weights[i] += kContentionFirst * contention[i];
  return weights;
}

}  // namespace memo::pack
