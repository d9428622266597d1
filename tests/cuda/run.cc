#include "run.h"

#include <algorithm>
#include <memory>

#include "check.h"

std::string Run::Text() const {
  std::string text = same_bits ? "" : "other bits; ";
  if (!refused.empty()) text += "refused: " + refused + "; ";
  for (const sim::Violation& violation : violations) {
    text += std::string(sim::NameOf(violation.kind)) + ": " + violation.text + "; ";
  }
  return text;
}

bool OnlyLeftovers(const Run& run) {
  return std::all_of(run.violations.begin(), run.violations.end(), [](const auto& found) {
    return found.kind == sim::Kind::kLeak || Contains(found.text, "was not put back");
  });
}

Run RunSteps(const Program& program) {
  sim::Options options;
  options.seed = program.seed;
  options.num_devices = program.num_devices;
  return RunOn(options, [&](Run* run) {
    std::vector<std::unique_ptr<memo::CudaDevice>> devices;
    std::vector<std::unique_ptr<Step>> steps;
    for (int i = 0; i < program.num_devices; ++i) {
      devices.push_back(std::make_unique<memo::CudaDevice>(i));
      steps.push_back(
          std::make_unique<Step>(devices.back().get(), program.shape, program.bug, program.fault));
    }
    const int num_blocks = program.shape.num_blocks;
    for (int round = 0; round < 2; ++round) {
      for (int block = 0; block < num_blocks; ++block) {
        for (const auto& step : steps) step->Forward(block);
      }
      for (int block = num_blocks - 1; block >= 0; --block) {
        for (const auto& step : steps) step->Backward(block);
      }
    }
    for (const auto& step : steps) {
      run->same_bits = step->Finish() == step->expected() && run->same_bits;
    }
    run->num_fault_calls = steps[0]->NumCalls();
    steps.clear();
  });
}
