#include <sys/types.h>

#include "allocator/checks.h"
#include "cuda/cuda_allocator.h"

extern "C" {
int memo_cuda_alloc(void** data, ssize_t size, int device, cudaStream_t stream, char* error,
                    size_t error_bytes);
void memo_cuda_free(void* data, ssize_t size, int device, cudaStream_t stream);
void memo_cuda_record_stream(void* data, cudaStream_t stream);
}

namespace {

constexpr ssize_t kAskedBytes = 5000;
constexpr int kServed = 0, kRefused = 1, kFailed = 2;

struct Answer {
  int outcome;
  char* data;
  std::string error;
};

Answer Ask(ssize_t bytes, int device, cudaStream_t stream) {
  char error[200] = "";
  void* data = &error;
  const int outcome = memo_cuda_alloc(&data, bytes, device, stream, error, sizeof(error));
  return Answer{outcome, static_cast<char*>(data), error};
}

// A block that another stream reads is not handed out before the stream has.
void UseDevice(int device, bool* same) {
  cudaSetDevice(device);
  const cudaStream_t stream = sim::Machine::Get().NewStream(device);
  const cudaStream_t copies = sim::Machine::Get().NewStream(device);
  for (char value = 1; value < 20; ++value) {
    char* const data = Ask(kAskedBytes, device, stream).data;
    Fill(stream, data, kAskedBytes, value);
    Order(stream, copies);
    Look(copies, data, kAskedBytes, value, same);
    memo_cuda_record_stream(data, copies);
    memo_cuda_free(data, kAskedBytes, device, stream);
  }
  cudaStreamSynchronize(stream);
  cudaStreamSynchronize(copies);
  const auto counters = memo::CudaAllocators::OfProcess().Of(device).Counters();
  EXPECT(counters.unplanned_requests == 19 && counters.device_mallocs == 1, device);
  cudaSetDevice(0);
}

void CheckRefused() {
  memo::CudaAllocators& all = memo::CudaAllocators::OfProcess();
  const Answer nothing = Ask(0, 0, nullptr);
  EXPECT(nothing.outcome == kServed && nothing.data == nullptr, nothing.error);
  memo_cuda_free(nullptr, 0, 0, nullptr);
  const Answer large = Ask(ssize_t{4} << 30, 1, nullptr);
  EXPECT(large.outcome == kRefused && large.data == nullptr, "more than the device has");
  EXPECT(Contains(large.error, "asked 4294967296 bytes"), large.error);
  for (const int device : {-1, 64}) {
    const Answer nowhere = Ask(1, device, nullptr);
    EXPECT(nowhere.outcome == kFailed && nowhere.data == nullptr, device);
    EXPECT(Contains(nowhere.error, "no CUDA device " + std::to_string(device)), nowhere.error);
  }
  EXPECT(Ask(-1, 0, nullptr).outcome == kFailed, "negative bytes");
  EXPECT(all.LastError().empty(), all.LastError());
  memo_cuda_record_stream(&all, nullptr);
  EXPECT(Contains(all.LastError(), "is not memory of a CUDA device"), all.LastError());
}

}  // namespace

void CheckEntry() {
  sim::Options options;
  options.num_devices = 2;
  const Run run = RunOn(options, [](Run* result) {
    for (const int device : {0, 1}) UseDevice(device, &result->same_bits);
    CheckRefused();
    // The process keeps its allocators, and they their events.
    for (const int device : {0, 1}) memo::CudaAllocators::OfProcess().Of(device).ReleaseIdle();
  });
  EXPECT(run.same_bits && run.refused.empty(), run.Text());
  const bool only_events =
      run.violations.size() == 1 && Contains(run.violations[0].text, " events");
  EXPECT(only_events, run.Text());
}
