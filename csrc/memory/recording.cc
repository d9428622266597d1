#include "memory/recording.h"

#include <algorithm>
#include <utility>

namespace memo {

void Recording::Start() {
  events_.emplace();
  sources_.clear();
}

void Recording::Add(MemoryEventKind kind, uint64_t offset, uint64_t bytes, uint64_t source) {
  if (!on()) return;
  auto place = std::find(sources_.begin(), sources_.end(), source);
  if (place == sources_.end()) place = sources_.insert(place, source);
  const auto number = static_cast<uint32_t>(place - sources_.begin());
  events_->push_back(MemoryEvent{static_cast<uint32_t>(kind), number, offset, bytes});
}

std::vector<MemoryEvent> Recording::Stop() {
  std::vector<MemoryEvent> events = std::move(events_).value_or(std::vector<MemoryEvent>());
  events_.reset();
  sources_.clear();
  return events;
}

}  // namespace memo
