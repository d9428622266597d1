#include <sys/types.h>

#include "allocator/checks.h"
#include "cuda/cuda_allocator.h"

extern "C" {
void* memo_cuda_alloc(ssize_t size, int device, cudaStream_t stream);
void memo_cuda_free(void* data, ssize_t size, int device, cudaStream_t stream);
void memo_cuda_record_stream(void* data, cudaStream_t stream);
}

namespace {

constexpr ssize_t kAskedBytes = 5000;

// A block that another stream reads is not handed out before the stream has.
void UseDevice(int device, bool* same) {
  cudaSetDevice(device);
  const cudaStream_t stream = sim::Machine::Get().NewStream(device);
  const cudaStream_t copies = sim::Machine::Get().NewStream(device);
  for (char value = 1; value < 20; ++value) {
    char* const data = static_cast<char*>(memo_cuda_alloc(kAskedBytes, device, stream));
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
  EXPECT(memo_cuda_alloc(0, 0, nullptr) == nullptr && all.LastError().empty(), all.LastError());
  memo_cuda_free(nullptr, 0, 0, nullptr);
  EXPECT(memo_cuda_alloc(ssize_t{4} << 30, 1, nullptr) == nullptr, "more than the device has");
  EXPECT(Contains(all.LastError(), "asked 4294967296 bytes"), all.LastError());
  for (const int device : {-1, 64}) {
    EXPECT(memo_cuda_alloc(1, device, nullptr) == nullptr, device);
    EXPECT(Contains(all.LastError(), "no CUDA device " + std::to_string(device)), all.LastError());
  }
  EXPECT(memo_cuda_alloc(-1, 0, nullptr) == nullptr, "negative bytes");
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
