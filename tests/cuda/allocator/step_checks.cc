#include <utility>
#include <vector>

#include "allocator/checks.h"

namespace {

constexpr uint64_t kPlace = 7;
using Requests = std::vector<memo::StepLayout::Request>;

constexpr size_t kBlock = memo::CudaAllocator::kBlockBytes;

std::shared_ptr<memo::StepLayout> LayoutOf(Requests requests, size_t alignment = kBlock) {
  return std::make_shared<memo::StepLayout>(
      std::move(requests), std::vector<memo::StepLayout::Mark>{{kPlace, 0}}, kBlock, alignment);
}

char* Ask(memo::CudaAllocator* allocator, size_t bytes, cudaStream_t stream = nullptr) {
  return static_cast<char*>(allocator->Alloc(bytes, stream));
}

void Begin(memo::CudaAllocator* allocator, Requests requests, cudaStream_t stream = nullptr) {
  EXPECT(allocator->BeginStep(LayoutOf(std::move(requests)), stream), "no room for a step");
  allocator->Mark(kPlace);
}

// Other streams' requests, small ones and those not foreseen lie elsewhere.
void CheckWhoIsServed() {
  CheckClean("who is served", sim::Options(), [](Run*) {
    const cudaStream_t other = sim::Machine::Get().NewStream(0);
    memo::CudaAllocator allocator(0, kSmallChunkBytes);
    Begin(&allocator, {{2 * kBlock, kBlock}, {kBlock, 0}});
    char* const elsewhere = Ask(&allocator, 2 * kBlock, other);
    char* const first = Ask(&allocator, kBlock + 1);
    char* const departed = Ask(&allocator, 8 * kBlock);
    char* const second = Ask(&allocator, 1);
    EXPECT(first - second == kBlock, first - second);
    const memo::ReplayCounts counts = *allocator.EndStep();
    EXPECT(counts.planned == 2 && counts.departed == 1, counts.departed);
    EXPECT(!allocator.EndStep(), "a step ended twice");
    for (char* data : {first, departed, second}) allocator.Free(data, nullptr);
    allocator.Free(elsewhere, other);
  });
}

// A GPU's addresses are multiples of a block, planned ones too.
void CheckAlignment() {
  CheckClean("alignment", sim::Options(), [](Run*) {
    memo::CudaAllocator allocator(0, kSmallChunkBytes);
    const std::string refused = RefusalOf<memo::InvalidArgument>(
        [&] { allocator.BeginStep(LayoutOf({{64, 64}}, 64), nullptr); });
    EXPECT(refused.find("multiples of 512") != std::string::npos, refused);
    RefusalOf<memo::InvalidArgument>([&] { LayoutOf({{kBlock, 64}}); });
  });
}

// A recording tells streams apart, gives addresses, and knows of planned ones too.
void CheckRecording() {
  CheckClean("recording", sim::Options(), [](Run*) {
    const cudaStream_t stream = sim::Machine::Get().NewStream(0);
    const cudaStream_t other = sim::Machine::Get().NewStream(0);
    memo::CudaAllocator allocator(0, kSmallChunkBytes);
    EXPECT(allocator.StopRecording().empty(), "a recording that never began");
    allocator.BeginStep(LayoutOf({{2 * kBlock, 0}}), stream);
    allocator.StartRecording(stream);
    allocator.Mark(kPlace);
    char* const planned = Ask(&allocator, 2 * kBlock, stream);
    char* const foreign = Ask(&allocator, 1, other);
    allocator.Free(planned, stream);
    const std::vector<memo::MemoryEvent> events = allocator.StopRecording();
    EXPECT(events.size() == 4, events.size());
    const auto same = [](const memo::MemoryEvent& event, memo::MemoryEvent expected) {
      return event.kind == expected.kind && event.source == expected.source &&
             event.offset == expected.offset && event.bytes == expected.bytes;
    };
    const auto at = reinterpret_cast<uint64_t>(planned);
    EXPECT(same(events[0], {2, 0, kPlace, 0}), "the mark");
    EXPECT(same(events[1], {0, 0, at, 2 * kBlock}), "the planned request");
    EXPECT(same(events[2], {0, 1, reinterpret_cast<uint64_t>(foreign), kBlock}), "the other");
    EXPECT(same(events[3], {1, 0, at, 2 * kBlock}), "the free");
    allocator.Free(foreign, other);
  });
}

// A larger layout gets a larger chunk in the place of the one before.
void CheckRegrowth() {
  CheckClean("regrowth", sim::Options(), [](Run*) {
    memo::CudaAllocator allocator(0, kSmallChunkBytes);
    for (const size_t bytes : {kMiB, 5 * kMiB, 3 * kMiB}) {
      Begin(&allocator, {{bytes, 0}});
      allocator.Free(Ask(&allocator, bytes), nullptr);
      EXPECT(allocator.EndStep()->planned == 1, bytes);
    }
    const memo::CudaAllocatorCounters counters = allocator.Counters();
    EXPECT(counters.device_mallocs == 2 && counters.device_frees == 1, counters.device_mallocs);
    EXPECT(counters.reserved_bytes == 6 * kMiB, counters.reserved_bytes);
    EXPECT(counters.reserved_peak_bytes == 6 * kMiB, counters.reserved_peak_bytes);
    allocator.ReleaseIdle();
    EXPECT(allocator.Counters().reserved_bytes == 0, "planned chunk between steps");
  });
}

// What lives on after its step keeps its place, also from the next step.
void CheckLeftovers() {
  CheckClean("leftovers", sim::Options(), [](Run*) {
    memo::CudaAllocator allocator(0, kSmallChunkBytes);
    Begin(&allocator, {{2 * kMiB, 0}});
    char* const left = Ask(&allocator, 2 * kMiB);
    Begin(&allocator, {{2 * kMiB, 0}});
    char* const next = Ask(&allocator, 2 * kMiB);
    EXPECT(next != left, "a live address was planned again");
    EXPECT(allocator.EndStep()->planned == 1, "planned");
    allocator.Free(left, nullptr);
    allocator.Free(next, nullptr);
  });
}

// The next step is another stream's: it must come after all that the range was used for.
void CheckStreamChange() {
  CheckClean("change of stream", sim::Options(), [](Run* run) {
    memo::CudaAllocator allocator(0, kSmallChunkBytes);
    const cudaStream_t copies = sim::Machine::Get().NewStream(0);
    std::vector<cudaStream_t> streams;
    char* data = nullptr;
    for (char value = 1; value < 6; ++value) {
      streams.push_back(sim::Machine::Get().NewStream(0));
      const cudaStream_t stream = streams.back();
      Begin(&allocator, {{kMiB, 0}}, stream);
      char* const found = Ask(&allocator, kMiB, stream);
      EXPECT(data == nullptr || found == data, "the range was not used again");
      data = found;
      Fill(stream, data, kMiB, value);
      Order(stream, copies);
      Look(copies, data, kMiB, value, &run->same_bits);
      allocator.RecordStream(data, copies);
      allocator.Free(data, stream);
      EXPECT(allocator.EndStep()->departed == 0, "departed");
    }
    cudaStreamSynchronize(copies);
    for (const cudaStream_t stream : streams) cudaStreamSynchronize(stream);
  });
}

// Where nothing else is left, what the planned range does not need serves the step by size.
void CheckGivenUp() {
  sim::Options options;
  options.device_bytes = 6 * kMiB;
  CheckClean("given up", options, [](Run*) {
    memo::CudaAllocator allocator(0, kSmallChunkBytes);
    EXPECT(!allocator.BeginStep(LayoutOf({{7 * kMiB, 0}}), nullptr), "room for more than all");
    EXPECT(!allocator.EndStep(), "a step that never began");
    Begin(&allocator, {{kMiB, 0}, {5 * kMiB, kMiB}});
    char* const planned = Ask(&allocator, kMiB);
    char* const departed = Ask(&allocator, 3 * kMiB);
    EXPECT(departed == planned + kMiB, departed - planned);
    const memo::ReplayCounts counts = *allocator.EndStep();
    EXPECT(counts.given_up && counts.planned == 1 && counts.departed == 1, counts.departed);
    allocator.Free(planned, nullptr);
    allocator.Free(departed, nullptr);
  });
}

}  // namespace

void CheckStepRanges() {
  CheckWhoIsServed();
  CheckAlignment();
  CheckRecording();
  CheckRegrowth();
  CheckLeftovers();
  CheckStreamChange();
  CheckGivenUp();
}
