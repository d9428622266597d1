// Planned addresses: places in one device allocation, handed out first fit and used again at once.
#ifndef MEMO_TESTS_CUDA_SLOTS_H_
#define MEMO_TESTS_CUDA_SLOTS_H_

#include <cstddef>
#include <map>

// The same requests in the same order get the same places, in every step.
class Slots {
 public:
  // The start of the lowest hole of `bytes` bytes.
  size_t Take(size_t bytes) {
    size_t place = 0;
    for (const auto& [begin, end] : used_) {
      if (begin - place >= bytes) break;
      place = end;
    }
    used_[place] = place + bytes;
    return place;
  }
  void Release(size_t place) { used_.erase(place); }

 private:
  std::map<size_t, size_t> used_;  // begin -> end
};

#endif  // MEMO_TESTS_CUDA_SLOTS_H_
