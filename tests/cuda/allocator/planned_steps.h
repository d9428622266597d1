// A step with a layout: blocks are made, used by a copy stream and freed, all in an order that a
// seed gives, so that freed addresses are planned again while copies may still read them.
#ifndef MEMO_TESTS_CUDA_ALLOCATOR_PLANNED_STEPS_H_
#define MEMO_TESTS_CUDA_ALLOCATOR_PLANNED_STEPS_H_

#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "allocator/checks.h"
#include "slots.h"

class PlannedStep {
 public:
  static constexpr uint64_t kPlace = 7;
  static constexpr size_t kBlock = memo::CudaAllocator::kBlockBytes;

  // Also makes the layout, by first fit as if every free were over at once.
  explicit PlannedStep(uint64_t seed) {
    std::mt19937_64 random(seed);
    Slots slots;
    std::vector<size_t> living;
    while (requests_.size() < kNumRequests || !living.empty()) {
      const bool full = living.size() > 8 || requests_.size() == kNumRequests;
      if (!living.empty() && (full || random() % 2 == 0)) {
        std::swap(living[random() % living.size()], living.back());
        moves_.push_back(Move{false, random() % 2 == 0, living.back()});
        slots.Release(requests_[living.back()].offset);
        living.pop_back();
        continue;
      }
      const size_t bytes = kBlock * (1 + random() % 10);
      living.push_back(requests_.size());
      moves_.push_back(Move{true, false, requests_.size()});
      requests_.push_back(memo::StepLayout::Request{bytes, slots.Take(bytes)});
    }
    layout_ = std::make_shared<memo::StepLayout>(
        requests_, std::vector<memo::StepLayout::Mark>{{kPlace, 0}}, kBlock, kBlock);
  }

  const std::shared_ptr<memo::StepLayout>& layout() const { return layout_; }

  // Moves [first, last) of a step on `compute`, its copies on `copies`. `records`: whether the
  // allocator is told of them. Gives the end of the moves when `last` is beyond it.
  size_t Go(memo::CudaAllocator* allocator, cudaStream_t compute, cudaStream_t copies,
            std::pair<size_t, size_t> range, bool records) {
    const size_t last = std::min(range.second, moves_.size());
    for (size_t i = range.first; i < last; ++i) {
      const Move& move = moves_[i];
      const size_t bytes = requests_[move.request].bytes;
      const char value = static_cast<char>(move.request);
      if (move.makes) {
        data_[move.request] = static_cast<char*>(allocator->Alloc(bytes, compute));
        Fill(compute, data_[move.request], bytes, value);
        continue;
      }
      char* const data = data_[move.request];
      if (move.copies) {
        Order(compute, copies);
        Look(copies, data, bytes, value, &same_);
        if (records) allocator->RecordStream(data, copies);
      }
      allocator->Free(data, compute);
    }
    return last;
  }

  // Whether every request had its planned address.
  bool AsPlanned() const {
    const char* const base = data_.at(0) - requests_[0].offset;
    for (const auto& [request, data] : data_) {
      if (data != base + requests_[request].offset) return false;
    }
    return true;
  }
  bool same() const { return same_; }
  size_t num_moves() const { return moves_.size(); }
  static constexpr size_t kNumRequests = 60;

 private:
  struct Move {
    bool makes;
    bool copies;  // before it is freed
    size_t request;
  };

  std::vector<memo::StepLayout::Request> requests_;
  std::vector<Move> moves_;
  std::shared_ptr<memo::StepLayout> layout_;
  std::map<size_t, char*> data_;
  bool same_ = true;
};

#endif  // MEMO_TESTS_CUDA_ALLOCATOR_PLANNED_STEPS_H_
