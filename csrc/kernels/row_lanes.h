// Sums over a row: its packs are shared out among lanes, whose sums are then added up.
#ifndef MEMO_KERNELS_ROW_LANES_H_
#define MEMO_KERNELS_ROW_LANES_H_

namespace memo {

// The threads of a warp on the GPU, the numbers of an array on the host; both add in one order.
constexpr unsigned kLanes = 32;

template <int kSums>
struct LaneSums {
  float values[kSums];
};

}  // namespace memo

#endif  // MEMO_KERNELS_ROW_LANES_H_
