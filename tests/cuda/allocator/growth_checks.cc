#include "allocator/checks.h"

namespace {

using memo::CudaAllocator;

void CheckChunks() {
  CheckClean("chunks", sim::Options(), [](Run*) {
    CudaAllocator allocator(0, kSmallChunkBytes);
    void* const small = allocator.Alloc(1000, nullptr);
    void* const second = allocator.Alloc(1, nullptr);
    EXPECT(static_cast<char*>(second) - static_cast<char*>(small) == 1024, "rounding");
    EXPECT(allocator.Counters().reserved_bytes == kSmallChunkBytes, "first chunk");
    void* const large = allocator.Alloc(3 * kMiB, nullptr);
    EXPECT(allocator.Counters().reserved_bytes == kSmallChunkBytes + 4 * kMiB, "large chunk");
    const cudaStream_t other = sim::Machine::Get().NewStream(0);
    void* const others = allocator.Alloc(1000, other);
    const memo::CudaAllocatorCounters counters = allocator.Counters();
    EXPECT(counters.device_mallocs == 3 && counters.unplanned_requests == 4, "a stream's own");
    EXPECT(counters.allocated_bytes == 1024 + 512 + 3 * kMiB + 1024, counters.allocated_bytes);
    for (void* data : {small, second, large}) allocator.Free(data, nullptr);
    allocator.Free(others, other);
    EXPECT(allocator.Counters().allocated_bytes == 0 && allocator.Counters().frees == 4, "frees");
    EXPECT(allocator.Counters().allocated_peak_bytes == counters.allocated_bytes, "peak");
    allocator.ResetPeak();
    EXPECT(allocator.Counters().allocated_peak_bytes == 0, "peak after reset");
    allocator.ReleaseIdle();
    EXPECT(allocator.Counters().reserved_bytes == 0 && allocator.Counters().device_frees == 3, "");
  });
}

void CheckRetries() {
  sim::Options options;
  options.device_bytes = 8 * kMiB;
  CheckClean("retries", options, [](Run*) {
    CudaAllocator allocator(0, kSmallChunkBytes);
    void* const first = allocator.Alloc(3 * kMiB, nullptr);
    void* const second = allocator.Alloc(3 * kMiB, nullptr);
    allocator.Free(first, nullptr);
    allocator.Free(second, nullptr);
    void* const large = allocator.Alloc(7 * kMiB, nullptr);
    EXPECT(allocator.Counters().retries == 1 && allocator.Counters().device_frees == 2, "retry");
    const std::string text =
        RefusalOf<memo::DeviceMemoryExceeded>([&] { allocator.Alloc(3 * kMiB, nullptr); });
    EXPECT(Contains(text, "asked 3145728 bytes") && Contains(text, "used 7340032 bytes") &&
               Contains(text, "cap 8388608 bytes") && Contains(text, "device 0 has 1048576 bytes"),
           text);
    EXPECT(allocator.Counters().refusals == 1, "refusals");
    allocator.Free(allocator.Alloc(kMiB / 2, nullptr), nullptr);
    allocator.Free(large, nullptr);
  });
}

// Where the device is full, what copies still read is waited for.
void CheckFullOfPending() {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    sim::Options options;
    options.seed = seed;
    options.device_bytes = 2 * kMiB;
    CheckClean("full of pending", options, [](Run* run) {
      CudaAllocator allocator(0, kSmallChunkBytes);
      const cudaStream_t copies = sim::Machine::Get().NewStream(0);
      char* const data = static_cast<char*>(allocator.Alloc(2 * kMiB, nullptr));
      Fill(nullptr, data, 2 * kMiB, 3);
      Order(nullptr, copies);
      Look(copies, data, 2 * kMiB, 3, &run->same_bits);
      allocator.RecordStream(data, copies);
      allocator.Free(data, nullptr);
      EXPECT(allocator.Counters().pending_frees == 1, "pending");
      EXPECT(allocator.Counters().pending_bytes == 2 * kMiB, "pending");
      EXPECT(allocator.Alloc(2 * kMiB, nullptr) == data, "another address");
      EXPECT(allocator.Counters().pending_frees == 0, "pending");
      Fill(nullptr, data, 2 * kMiB, 4);
      allocator.Free(data, nullptr);
      cudaStreamSynchronize(nullptr);
      cudaStreamSynchronize(copies);
    });
  }
}

// A block that two streams read is handed out when both have.
void CheckTwoUsers() {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    sim::Options options;
    options.seed = seed;
    CheckClean("two users", options, [](Run* run) {
      CudaAllocator allocator(0, kSmallChunkBytes);
      const cudaStream_t users[] = {sim::Machine::Get().NewStream(0),
                                    sim::Machine::Get().NewStream(0)};
      char* const data = static_cast<char*>(allocator.Alloc(1000, nullptr));
      Fill(nullptr, data, 1000, 3);
      for (const cudaStream_t user : users) {
        Order(nullptr, user);
        Look(user, data, 1000, 3, &run->same_bits);
        allocator.RecordStream(data, user);
      }
      allocator.Free(data, nullptr);
      cudaStreamSynchronize(users[0]);
      for (int i = 0; i < 5; ++i) {
        char* const next = static_cast<char*>(allocator.Alloc(1000, nullptr));
        Fill(nullptr, next, 1000, 4);
        allocator.Free(next, nullptr);
      }
      cudaStreamSynchronize(nullptr);
      cudaStreamSynchronize(users[1]);
    });
  }
}

void CheckCap() {
  CheckClean("cap", sim::Options(), [](Run*) {
    CudaAllocator allocator(0, kSmallChunkBytes);
    allocator.SetCap(kSmallChunkBytes);
    void* const data = allocator.Alloc(1000, nullptr);
    const std::string text =
        RefusalOf<memo::DeviceMemoryExceeded>([&] { allocator.Alloc(kMiB, nullptr); });
    EXPECT(Contains(text, "cap 65536 bytes"), text);
    allocator.SetCap(std::nullopt);
    allocator.Free(allocator.Alloc(kMiB, nullptr), nullptr);
    EXPECT(!RefusalOf<memo::InvalidArgument>([&] { allocator.SetCap(0); }).empty(), "cap of 0");
    allocator.Free(data, nullptr);
  });
}

void CheckWrongArguments() {
  CheckClean("wrong arguments", sim::Options(), [](Run*) {
    CudaAllocator allocator(0, kSmallChunkBytes);
    const auto wrong = [](auto body) { return !RefusalOf<memo::InvalidArgument>(body).empty(); };
    EXPECT(wrong([&] { allocator.Alloc(0, nullptr); }), "0 bytes");
    EXPECT(wrong([&] { allocator.Alloc(SIZE_MAX, nullptr); }), "too many bytes");
    char* const data = static_cast<char*>(allocator.Alloc(1000, nullptr));
    const cudaStream_t other = sim::Machine::Get().NewStream(0);
    EXPECT(wrong([&] { allocator.Free(data + 512, nullptr); }), "into the middle");
    EXPECT(wrong([&] { allocator.Free(&allocator, nullptr); }), "no device memory");
    allocator.RecordStream(data, other);
    allocator.Free(data, nullptr);
    EXPECT(wrong([&] { allocator.Free(data, nullptr); }), "twice, while pending");
    EXPECT(wrong([&] { allocator.RecordStream(data, other); }), "of a freed block");
    cudaStreamSynchronize(other);
  });
}

}  // namespace

void CheckGrowth() {
  CheckChunks();
  CheckRetries();
  CheckFullOfPending();
  CheckTwoUsers();
  CheckCap();
  CheckWrongArguments();
}
