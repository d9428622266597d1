// The CUDA allocator on the simulated runtime.
//
//   allocator_checks NAME                a check of checks.h
//   allocator_checks NAME FIRST COUNT    one that takes seeds
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>

#include "allocator/checks.h"

int main(int argc, char** argv) {
  const auto seeded = [&](void (*check)(uint64_t, uint64_t)) {
    return [=] { check(std::strtoull(argv[2], nullptr, 10), std::strtoull(argv[3], nullptr, 10)); };
  };
  const std::map<std::string, std::function<void()>> alone = {
      {"ranges", CheckStepRanges}, {"growth", CheckGrowth},   {"virtual", CheckRanges},
      {"failures", CheckFailures}, {"threads", CheckThreads}, {"entry", CheckEntry}};
  const std::map<std::string, std::function<void()>> with_seeds = {
      {"traffic", seeded(CheckTraffic)},
      {"bugs", seeded(CheckTrafficBugs)},
      {"planned", seeded(CheckPlannedSteps)}};
  const auto& checks = argc == 4 ? with_seeds : alone;
  const auto found = checks.find(argc > 1 ? argv[1] : "");
  if (found == checks.end()) {
    std::cerr << "no such check; see allocator/main.cc" << std::endl;
    return 2;
  }
  found->second();
  std::cout << found->first << " holds" << std::endl;
  return 0;
}
