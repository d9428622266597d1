// Blocks that were freed while other streams than their own still had work on them.
#ifndef MEMO_CUDA_CUDA_PENDING_FREES_H_
#define MEMO_CUDA_CUDA_PENDING_FREES_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cuda/cuda_events.h"

namespace memo {

// Whoever owns it holds a lock around every call.
class CudaPendingFrees {
 public:
  using Users = std::vector<std::pair<cudaStream_t, CudaEventRef>>;
  struct Block {
    char* data = nullptr;
    size_t bytes = 0;
  };

  // `users`: each stream that may still work on the block, and an event recorded there after that
  // work; at least one.
  void Add(Block block, const Users& users);

  // A block whose events are all done, which is pending no more; nothing if there is none. Each
  // stream is asked only for the first event that is not done. Throws CudaError.
  std::optional<Block> TakeDone();
  // A block with a byte in [data, data + bytes), which is pending no more, because `stream` has
  // been told to wait for its events; nothing if there is none. Needs a guard. Throws CudaError.
  std::optional<Block> TakeBehind(cudaStream_t stream, const char* data, size_t bytes);

  // What is waited for, to be waited for by the host without the lock.
  std::vector<CudaEventRef> Events() const;

  bool Holds(const char* data) const { return blocks_.count(data) > 0; }
  bool empty() const { return blocks_.empty(); }
  size_t size() const { return blocks_.size(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Pending {
    Block block;
    std::vector<CudaEventRef> events;
    size_t num_left = 0;  // 0 also when it was taken before its events were done
  };
  struct Use {
    CudaEventRef event;
    std::shared_ptr<Pending> pending;
  };
  using Queue = std::deque<Use>;  // in the order of the stream, and so of the events

  std::optional<Block> NextOf(Queue* queue);
  Block Take(const std::shared_ptr<Pending>& pending);

  std::map<const char*, std::shared_ptr<Pending>> blocks_;  // by data; disjoint
  std::map<cudaStream_t, Queue> queues_;
  size_t bytes_ = 0;
};

}  // namespace memo

#endif  // MEMO_CUDA_CUDA_PENDING_FREES_H_
