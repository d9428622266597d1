// A training step as the runtime drives a device: swap, prefetch, use, release, planned addresses.
#ifndef MEMO_TESTS_CUDA_STEP_H_
#define MEMO_TESTS_CUDA_STEP_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "copies/transfer.h"
#include "cuda/cuda_device.h"
#include "faulty_device.h"
#include "sim/machine.h"
#include "slots.h"

// What a step can do wrong, one at a time.
enum class Bug {
  kNone,
  kReleaseWithoutWait,   // device memory is used again while its copy to the host is under way
  kReleaseBeforeCopy,    // device memory is used again before the copy is even started
  kUseWithoutWait,       // compute reads what is still coming back
  kFetchWithoutCompute,  // a copy back overwrites memory that compute still uses
  kExchangedCopies,      // two tiles come back in each other's place
  kFreeHostEarly,        // a host range is given away while its copy back is under way
  kFreeDeviceEarly,      // the arena is freed before the last copy out of it is done
  kReadWithoutWait,      // the host reads a result that is still on its way
  kStaleStream,          // compute's stream is remembered from before it changed
};
constexpr int kNumBugs = 10;

// Numbers of a step; made from a seed.
struct StepShape {
  int num_blocks;
  int num_tiles;
  size_t most_rows;  // a tile is up to so many rows in a wider tensor
  size_t most_row_bytes;
  size_t in_flight;  // copies to the host under way before the oldest is waited for
  bool fetch_ahead;
  bool change_stream;  // every block computes on another stream
};
StepShape ShapeFrom(uint64_t seed);

// Steps of one device: Forward of blocks 0, 1, ..., then Backward in reverse, any number of times.
// The "gradient" folds all tiles into one range of bytes, in order, so that any wrong byte in any
// tile changes it.
class Step {
 public:
  Step(memo::CudaDevice* device, const StepShape& shape, Bug bug, Fault fault);

  // One half of one block, to be interleaved with other devices' steps.
  void Forward(int block);
  void Backward(int block);
  // The gradient, on the host; frees what the step has.
  std::vector<unsigned char> Finish();

  // What Finish gives when nothing goes wrong.
  const std::vector<unsigned char>& expected() const { return expected_; }
  // Calls of the fault's sort.
  int NumCalls() const { return faulty_->NumCalls(); }

 private:
  // Rows in a wider tensor.
  struct Form {
    size_t rows = 0;
    size_t row_bytes = 0;
    size_t pitch_bytes = 0;
    size_t Bytes() const { return rows * row_bytes; }
    size_t Extent() const { return (rows - 1) * pitch_bytes + row_bytes; }
  };
  struct Tile {
    Form form;
    unsigned char value = 0;
    size_t place = 0;
    void* host = nullptr;
    memo::EventPtr sent;
    memo::EventPtr returned;
  };

  void Compute(sim::Kernel kernel);
  Tile MakeTile(int block, int index);
  void SwapOut(Tile* tile);
  void FinishOldest();
  void Fetch(Tile* tile);
  void Use(Tile* tile);
  void Release(const Tile& tile);
  void ChangeStream();
  void Wait(const memo::EventPtr& event) { faulty_->ComputeWait(current_, event); }
  void GiveAwayHost(Tile* tile);
  char* Data(const Tile& tile) const { return arena_ + tile.place; }
  std::vector<sim::Range> Rows(const Tile& tile) const;
  // The tile whose backward comes after this one's, or null.
  Tile* Before(int block, int tile);
  bool Has(Bug bug) const { return bug_ == bug; }

  memo::CudaDevice* const device_;
  const StepShape shape_;
  const Bug bug_;
  std::shared_ptr<FaultyDevice> faulty_;
  memo::Transfer transfer_;
  char* arena_ = nullptr;
  unsigned char* gradient_ = nullptr;
  Slots slots_;
  std::vector<std::vector<Tile>> tiles_;  // [block][tile]
  std::deque<Tile*> in_flight_;
  std::vector<cudaStream_t> compute_;  // two streams; the first is the current one
  memo::ComputeStream current_ = 0;    // what the device is told
  memo::StreamId unordered_ = 0;       // a copy stream that waits for nothing by itself
  int num_forwards_ = 0;
  std::vector<unsigned char> expected_;
};

#endif  // MEMO_TESTS_CUDA_STEP_H_
