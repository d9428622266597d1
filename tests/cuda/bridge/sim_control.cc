// The simulated machine as Python tests reach it, beside the bindings of the CUDA device.
#include <cstdint>
#include <cstring>
#include <string>

#include "sim/machine.h"

#define MEMO_EXPORT extern "C" __attribute__((visibility("default")))

MEMO_EXPORT void sim_start(uint64_t seed, int num_devices) {
  sim::Options options;
  options.seed = seed;
  options.num_devices = num_devices;
  sim::Machine::Start(options);
}

// Memory that the test owns becomes memory of device 0.
MEMO_EXPORT void sim_adopt(uintptr_t data, size_t bytes) {
  sim::Machine::Get().memory().Adopt(reinterpret_cast<void*>(data), bytes, 0);
}

MEMO_EXPORT uintptr_t sim_host_stream(int device) {
  return reinterpret_cast<uintptr_t>(sim::Machine::Get().NewHostStream(device));
}

// Writes what was found, one violation a line, cut to `bytes` with the final zero.
MEMO_EXPORT void sim_finish(char* text, size_t bytes) {
  std::string all;
  for (const sim::Violation& violation : sim::Machine::Get().Finish()) {
    all += std::string(sim::NameOf(violation.kind)) + ": " + violation.text + "\n";
  }
  std::strncpy(text, all.c_str(), bytes - 1);
  text[bytes - 1] = '\0';
}
