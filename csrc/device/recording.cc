#include "device/recording.h"

#include <algorithm>
#include <functional>
#include <thread>
#include <utility>

namespace memo {

void Recording::Add(ArenaEventKind kind, uint64_t offset, uint64_t bytes) {
  if (!on()) return;
  events_->push_back(ArenaEvent{static_cast<uint32_t>(kind), Thread(), offset, bytes});
}

std::vector<ArenaEvent> Recording::Stop() {
  std::vector<ArenaEvent> events = std::move(events_).value_or(std::vector<ArenaEvent>());
  events_.reset();
  threads_.clear();
  return events;
}

uint32_t Recording::Thread() {
  const uint64_t self = std::hash<std::thread::id>()(std::this_thread::get_id());
  auto place = std::find(threads_.begin(), threads_.end(), self);
  if (place == threads_.end()) place = threads_.insert(place, self);
  return static_cast<uint32_t>(place - threads_.begin());
}

}  // namespace memo
