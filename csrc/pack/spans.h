// What lives all through a window, without a list of it for each window.
#ifndef MEMO_PACK_SPANS_H_
#define MEMO_PACK_SPANS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pack/first_fit.h"

namespace memo::pack {

// Buffers and taken ranges, each for a run of windows. A run is kept as a few nodes of a binary
// tree over the windows, and a window asks the nodes above it.
class Spans {
 public:
  explicit Spans(size_t num_windows);

  // Adds a buffer that lives all through the windows [first, last).
  void Add(size_t first, size_t last, int32_t buffer);
  // Takes [start, stop) of the offsets in the windows [first, last).
  void Take(size_t first, size_t last, int64_t start, int64_t stop);
  // Appends the buffers of a window, but for those that a call told before; there may be more of
  // those among them.
  void Tell(size_t window, std::vector<int32_t>& buffers);
  // What is taken all through a window.
  Ranges Taken(size_t window) const;
  // Nothing is taken and nothing was told.
  void Reset();

 private:
  struct Node {
    std::vector<int32_t> buffers;
    Ranges taken;
    bool told = false;
  };

  std::vector<Node> nodes_;  // the children of node k are 2 k and 2 k + 1; leaves are last
};

}  // namespace memo::pack

#endif  // MEMO_PACK_SPANS_H_
