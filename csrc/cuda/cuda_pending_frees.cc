#include "cuda/cuda_pending_frees.h"

#include <iterator>

namespace memo {

void CudaPendingFrees::Add(Block block, const Users& users) {
  const auto pending = std::make_shared<Pending>();
  pending->block = block;
  pending->num_left = users.size();
  for (const auto& [stream, event] : users) {
    pending->events.push_back(event);
    queues_[stream].push_back(Use{event, pending});
  }
  blocks_.emplace(block.data, pending);
  bytes_ += block.bytes;
}

std::optional<CudaPendingFrees::Block> CudaPendingFrees::TakeDone() {
  for (auto queue = queues_.begin(); queue != queues_.end();) {
    if (const std::optional<Block> done = NextOf(&queue->second)) return done;
    queue = queue->second.empty() ? queues_.erase(queue) : std::next(queue);
  }
  return std::nullopt;
}

std::optional<CudaPendingFrees::Block> CudaPendingFrees::NextOf(Queue* queue) {
  while (!queue->empty()) {
    const std::shared_ptr<Pending> pending = queue->front().pending;
    // Nobody waits any more for the events of a block that TakeBehind took.
    if (pending->num_left > 0 && !queue->front().event->Done()) return std::nullopt;
    queue->pop_front();
    if (pending->num_left > 0 && --pending->num_left == 0) return Take(pending);
  }
  return std::nullopt;
}

std::optional<CudaPendingFrees::Block> CudaPendingFrees::TakeBehind(cudaStream_t stream,
                                                                    const char* data,
                                                                    size_t bytes) {
  auto found = blocks_.lower_bound(data);
  if (found != blocks_.begin()) {
    const auto before = std::prev(found);
    if (before->first + before->second->block.bytes > data) found = before;
  }
  if (found == blocks_.end() || found->first >= data + bytes) return std::nullopt;
  // A copy of the pointer: Take erases the entry.
  const std::shared_ptr<Pending> pending = found->second;
  for (const CudaEventRef& event : pending->events) event->Block(stream);
  return Take(pending);
}

CudaPendingFrees::Block CudaPendingFrees::Take(const std::shared_ptr<Pending>& pending) {
  pending->num_left = 0;
  blocks_.erase(pending->block.data);
  bytes_ -= pending->block.bytes;
  return pending->block;
}

std::vector<CudaEventRef> CudaPendingFrees::Events() const {
  std::vector<CudaEventRef> events;
  for (const auto& [data, pending] : blocks_) {
    events.insert(events.end(), pending->events.begin(), pending->events.end());
  }
  return events;
}

}  // namespace memo
