// Host pages as a CUDA device wants them: pinned, on the NUMA node beside it, not shared by forks.
#ifndef MEMO_CUDA_CUDA_PAGES_H_
#define MEMO_CUDA_CUDA_PAGES_H_

#include <cstddef>

#include "cuda/cuda_calls.h"
#include "memory/host_pool.h"

namespace memo {

// Pins whole pages where they are, so that a range costs what was asked and no more: runtimes that
// allocate pinned memory themselves may round its size up.
class CudaPages : public PagePinner {
 public:
  // Asks the device for its NUMA node. Throws CudaError.
  explicit CudaPages(CudaCalls* calls);

  // False when the system has no room for more pinned pages. Throws CudaError otherwise.
  bool Pin(void* data, size_t bytes) override;
  void Unpin(void* data, size_t bytes) noexcept override;

  // The node that pages are asked from, or negative where the system has none.
  int numa_node() const { return numa_node_; }

 private:
  void PreferNode(void* data, size_t bytes) const;

  CudaCalls* const calls_;
  int numa_node_ = -1;
};

}  // namespace memo

#endif  // MEMO_CUDA_CUDA_PAGES_H_
