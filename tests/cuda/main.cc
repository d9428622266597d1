// The CUDA device on the simulated runtime.
//
//   cuda_checks NAME                a check of checks.h
//   cuda_checks NAME FIRST COUNT    one that takes seeds
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <string>

#include "checks.h"

int main(int argc, char** argv) {
  const auto number = [&](int index) { return std::strtoull(argv[index], nullptr, 10); };
  const auto seeded = [&](void (*check)(uint64_t, uint64_t)) {
    return [=] { check(number(2), number(3)); };
  };
  const std::map<std::string, std::function<void()>> alone = {
      {"contract", CheckContract}, {"order", CheckOrder},     {"failures", CheckFailures},
      {"fork", CheckFork},         {"threads", CheckThreads}, {"simulation", CheckSimulation}};
  const std::map<std::string, std::function<void()>> with_seeds = {
      {"steps", seeded(CheckCleanSteps)},
      {"bugs", seeded(CheckBugs)},
      {"faults", seeded(CheckFaults)}};
  const auto& checks = argc == 4 ? with_seeds : alone;
  const auto found = checks.find(argc > 1 ? argv[1] : "");
  if (found == checks.end()) {
    std::cerr << "no such check; see main.cc" << std::endl;
    return 2;
  }
  found->second();
  std::cout << found->first << " holds" << std::endl;
  return 0;
}
