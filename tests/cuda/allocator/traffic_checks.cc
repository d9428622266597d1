#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "allocator/checks.h"

namespace {

constexpr size_t kNumStreams = 3;
constexpr int kRounds = 150;
constexpr size_t kMostBytes = 20000;

enum class TrafficBug { kNone, kUseNotRecorded, kFreedBeforeUse };

struct Block {
  char* data;
  size_t bytes;
  size_t stream;
  char value;
};

class Traffic {
 public:
  Traffic(uint64_t seed, TrafficBug bug) : random_(seed), bug_(bug) {
    for (cudaStream_t& stream : streams_) stream = sim::Machine::Get().NewStream(0);
  }

  void Go() {
    for (int round = 0; round < kRounds; ++round) {
      const uint64_t move = random_() % 5;
      if (blocks_.empty() || (move < 2 && blocks_.size() < 12)) {
        Make();
      } else if (move < 4) {
        UseElsewhere();
      } else {
        Drop(random_() % blocks_.size());
      }
    }
    for (const cudaStream_t stream : streams_) cudaStreamSynchronize(stream);
    while (!blocks_.empty()) Drop(blocks_.size() - 1);
    for (const cudaStream_t stream : streams_) cudaStreamSynchronize(stream);
  }

  bool same() const { return same_; }
  const memo::CudaAllocator& allocator() const { return allocator_; }

 private:
  void Make() {
    const size_t bytes = 1 + random_() % kMostBytes;
    const size_t stream = random_() % kNumStreams;
    char* data = static_cast<char*>(allocator_.Alloc(bytes, streams_[stream]));
    for (const Block& other : blocks_) {
      EXPECT(data + bytes <= other.data || other.data + other.bytes <= data, "blocks overlap");
    }
    blocks_.push_back(Block{data, bytes, stream, static_cast<char>(random_())});
    Fill(streams_[stream], data, bytes, blocks_.back().value);
  }

  // Another stream reads the block after its own has filled it, as a copy to the host does.
  void UseElsewhere() {
    const size_t place = random_() % blocks_.size();
    const Block block = blocks_[place];
    const size_t other = (block.stream + 1 + random_() % (kNumStreams - 1)) % kNumStreams;
    Order(streams_[block.stream], streams_[other]);
    if (bug_ == TrafficBug::kFreedBeforeUse) Drop(place);
    Look(streams_[other], block.data, block.bytes, block.value, &same_);
    if (bug_ == TrafficBug::kNone) allocator_.RecordStream(block.data, streams_[other]);
    if (bug_ != TrafficBug::kFreedBeforeUse && random_() % 2 == 0) Drop(place);
  }

  void Drop(size_t place) {
    std::swap(blocks_[place], blocks_.back());
    const Block block = blocks_.back();
    blocks_.pop_back();
    Look(streams_[block.stream], block.data, block.bytes, block.value, &same_);
    allocator_.Free(block.data, streams_[block.stream]);
  }

  std::mt19937_64 random_;
  const TrafficBug bug_;
  cudaStream_t streams_[kNumStreams];
  memo::CudaAllocator allocator_{0, kSmallChunkBytes};
  std::vector<Block> blocks_;
  bool same_ = true;
};

Run RunTraffic(uint64_t seed, TrafficBug bug, memo::CudaAllocatorCounters* counters) {
  sim::Options options;
  options.seed = seed;
  return RunOn(options, [&](Run* run) {
    Traffic traffic(seed, bug);
    traffic.Go();
    run->same_bits = traffic.same();
    *counters = traffic.allocator().Counters();
  });
}

}  // namespace

void CheckTraffic(uint64_t first, uint64_t count) {
  uint64_t requests = 0, mallocs = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    memo::CudaAllocatorCounters counters;
    const Run run = RunTraffic(seed, TrafficBug::kNone, &counters);
    EXPECT(run.Clean(), "seed " + std::to_string(seed) + ": " + run.Text());
    EXPECT(counters.allocated_bytes == 0, counters.allocated_bytes);
    EXPECT(counters.frees == counters.unplanned_requests, counters.frees);
    requests += counters.unplanned_requests;
    mallocs += counters.device_mallocs;
  }
  EXPECT(mallocs * 4 < requests, mallocs);  // addresses were used again
}

void CheckTrafficBugs(uint64_t first, uint64_t count) {
  for (const TrafficBug bug : {TrafficBug::kUseNotRecorded, TrafficBug::kFreedBeforeUse}) {
    for (uint64_t seed = first; seed < first + count; ++seed) {
      memo::CudaAllocatorCounters counters;
      const Run run = RunTraffic(seed, bug, &counters);
      const bool raced =
          std::any_of(run.violations.begin(), run.violations.end(),
                      [](const auto& found) { return found.kind == sim::Kind::kRace; });
      EXPECT(raced, "bug " + std::to_string(static_cast<int>(bug)) + " is missed under seed " +
                        std::to_string(seed));
    }
  }
}
