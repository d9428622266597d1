// The simulated machine as Python tests reach it, beside the bindings of the CUDA device.
#include <sys/types.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "cuda/cuda_allocator.h"
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

MEMO_EXPORT uint64_t sim_num_pins() { return sim::Machine::Get().NumPins(); }

// Writes what was found, one violation a line, cut to `bytes` with the final zero.
MEMO_EXPORT void sim_finish(char* text, size_t bytes) {
  std::string all;
  for (const sim::Violation& violation : sim::Machine::Get().Finish()) {
    all += std::string(sim::NameOf(violation.kind)) + ": " + violation.text + "\n";
  }
  std::strncpy(text, all.c_str(), bytes - 1);
  text[bytes - 1] = '\0';
}

// The functions of csrc/torch/cpu_allocator_hook.cc over the allocator of device 0; the context is
// the stream of the thread that computes.
MEMO_EXPORT void* sim_tensor_alloc(void* stream, size_t bytes, char* error, size_t error_bytes) {
  try {
    auto& allocator = memo::CudaAllocators::OfProcess().Of(0);
    void* data = allocator.Alloc(bytes, static_cast<cudaStream_t>(stream));
    return std::memset(data, 0xFF, bytes);
  } catch (const memo::Error& refused) {
    std::snprintf(error, error_bytes, "%s", refused.what());
    return nullptr;
  }
}

MEMO_EXPORT void sim_tensor_free(void* stream, void* data) {
  memo::CudaAllocators::OfProcess().Of(0).Free(data, static_cast<cudaStream_t>(stream));
}

// The same over the two functions that torch's pluggable allocator was given, which throw.
namespace {
struct TorchFunctions {
  void* (*alloc)(ssize_t bytes, int device, void* stream) = nullptr;
  void (*free)(void* data, ssize_t bytes, int device, void* stream) = nullptr;
};
TorchFunctions torch_functions;
}  // namespace

MEMO_EXPORT void sim_set_torch_functions(uintptr_t alloc, uintptr_t free) {
  torch_functions.alloc = reinterpret_cast<decltype(torch_functions.alloc)>(alloc);
  torch_functions.free = reinterpret_cast<decltype(torch_functions.free)>(free);
}

MEMO_EXPORT void* sim_pluggable_alloc(void* stream, size_t bytes, char*, size_t) {
  return torch_functions.alloc(static_cast<ssize_t>(bytes), 0, stream);
}

MEMO_EXPORT void sim_pluggable_free(void* stream, void* data) {
  torch_functions.free(data, 0, 0, stream);
}
