#include "pack/spans.h"

#include <utility>

namespace memo::pack {
namespace {

// Calls `visit` with the numbers of the nodes that make up the leaves [first, last).
template <typename Visit>
void ForEachNode(size_t num_leaves, size_t first, size_t last, Visit visit) {
  for (first += num_leaves, last += num_leaves; first < last; first /= 2, last /= 2) {
    if (first % 2 == 1) visit(first++);
    if (last % 2 == 1) visit(--last);
  }
}

}  // namespace

Spans::Spans(size_t num_windows) : nodes_(2 * num_windows) {}

void Spans::Add(size_t first, size_t last, int32_t buffer) {
  ForEachNode(nodes_.size() / 2, first, last,
              [&](size_t k) { nodes_[k].buffers.push_back(buffer); });
}

void Spans::Take(size_t first, size_t last, int64_t start, int64_t stop) {
  ForEachNode(nodes_.size() / 2, first, last,
              [&](size_t k) { pack::Take(nodes_[k].taken, start, stop); });
}

void Spans::Tell(size_t window, std::vector<int32_t>& buffers) {
  for (size_t k = window + nodes_.size() / 2; k > 0; k /= 2) {
    if (std::exchange(nodes_[k].told, true)) continue;
    buffers.insert(buffers.end(), nodes_[k].buffers.begin(), nodes_[k].buffers.end());
  }
}

Ranges Spans::Taken(size_t window) const {
  Ranges taken;
  for (size_t k = window + nodes_.size() / 2; k > 0; k /= 2) {
    taken.insert(taken.end(), nodes_[k].taken.begin(), nodes_[k].taken.end());
  }
  return Joined(std::move(taken));
}

void Spans::Reset() {
  for (Node& node : nodes_) node.taken.clear(), node.told = false;
}

}  // namespace memo::pack
