#include "memory/replay.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <execinfo.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>

namespace memo {
namespace {

constexpr int kMostFrames = 96;
constexpr char kOps[] = "at::_ops::";
constexpr char kNodes[] = "torch::autograd::generated::";

std::string FunctionAt(void* address) {
  Dl_info found;
  if (dladdr(address, &found) == 0 || found.dli_sname == nullptr) return "";
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> demangled(
      abi::__cxa_demangle(found.dli_sname, nullptr, nullptr, &status), &std::free);
  return status == 0 ? demangled.get() : found.dli_sname;  // the name of a C function as it is
}

// "mm" of "at::_ops::mm::call(at::Tensor const&, ...)"; empty if `function` is in another space.
std::string NameIn(const std::string& function, const std::string& space) {
  if (function.compare(0, space.size(), space) != 0) return "";
  return function.substr(space.size(), function.find("::", space.size()) - space.size());
}

// The operation that the interpreter (or autograd) called, read off the native stack, such as "mm"
// or "MmBackward0: mm"; empty if the stack names none. Takes about a millisecond: for reports, not
// for every request.
std::string AskingOp() {
  void* frames[kMostFrames];
  const int num_frames = backtrace(frames, kMostFrames);
  std::string op;
  for (int i = 0; i < num_frames; ++i) {
    const std::string function = FunctionAt(frames[i]);
    if (function.compare(0, 3, "_Py") == 0) break;  // the interpreter: all below is the caller's
    const std::string name = NameIn(function, kOps);
    if (!name.empty()) op = name;  // the outermost: operations call others
    const std::string node = NameIn(function, kNodes);
    if (!node.empty()) return op.empty() ? node : node + ": " + op;
  }
  return op;
}

}  // namespace

Replay::Replay(std::shared_ptr<const StepLayout> layout, size_t base, ServedThreads served)
    : layout_(std::move(layout)),
      base_(base),
      served_(served),
      thread_(pthread_self()),
      waits_(layout_->waits()),
      skipped_(layout_->size(), 0),
      live_in_(layout_->num_slots(), kNobody) {}

std::optional<size_t> Replay::Alloc(size_t bytes) {
  if (!ServesCaller()) return std::nullopt;
  if (bytes < layout_->smallest_bytes()) {
    ++counts_.small;
    return std::nullopt;
  }
  if (!Expects(bytes)) return Depart(bytes, /*in_use=*/false);
  const Number k = next_++;
  const uint64_t offset = layout_->request(k).offset;
  if (offset == StepLayout::kOutside) {
    ++counts_.outside;
    return std::nullopt;
  }
  if (waits_[k] != 0) {
    Skip(k);
    return Depart(bytes, /*in_use=*/true);
  }
  live_in_[layout_->slot(k)] = k;
  ++counts_.planned;
  return base_ + offset;
}

std::optional<size_t> Replay::Depart(size_t bytes, bool in_use) {
  ++counts_.departed;
  if (counts_.first) return std::nullopt;  // AskingOp takes too long to be asked each time
  const bool expects = !lost_ && next_ < segment_end_;
  const uint64_t expected = in_use ? bytes : expects ? layout_->request(next_).bytes : 0;
  counts_.first = ReplayCounts::Departure{bytes, expected, place_, in_use, AskingOp()};
  return std::nullopt;
}

std::optional<size_t> Replay::Next(size_t bytes) const {
  if (!ServesCaller() || !Expects(bytes)) return std::nullopt;
  const uint64_t offset = layout_->request(next_).offset;
  return offset == StepLayout::kOutside ? std::nullopt : std::optional<size_t>(base_ + offset);
}

Replay::Number Replay::LiveAt(size_t address) const {
  if (!Covers(address)) return kNobody;
  const uint32_t slot = layout_->FindSlot(address - base_);
  return slot == layout_->num_slots() ? kNobody : live_in_[slot];
}

size_t Replay::Free(size_t address) {
  const Number k = LiveAt(address);
  if (k == kNobody) return 0;
  live_in_[layout_->slot(k)] = kNobody;
  Finish(k);
  return layout_->request(k).bytes;
}

size_t Replay::LiveBytes(size_t address) const {
  const Number k = LiveAt(address);
  return k == kNobody ? 0 : layout_->request(k).bytes;
}

void Replay::Mark(uint64_t value) {
  if (lost_) return;
  place_ = value;
  const auto& marks = layout_->marks();
  // Another step than the one that the layout was made for: nothing is expected from here on.
  lost_ = next_mark_ >= marks.size() || marks[next_mark_].value != value;
  if (lost_) return;
  const auto first = static_cast<Number>(marks[next_mark_++].first);
  for (; next_ < first; ++next_) {
    ++counts_.missing;
    Skip(next_);
  }
  const bool is_last = next_mark_ == marks.size();
  segment_end_ = is_last ? layout_->size() : static_cast<Number>(marks[next_mark_].first);
}

void Replay::End() { counts_.missing += layout_->size() - next_; }

std::vector<std::pair<size_t, size_t>> Replay::Live() const {
  std::vector<std::pair<size_t, size_t>> live;
  for (const Number k : live_in_) {
    if (k == kNobody) continue;
    live.emplace_back(base_ + layout_->request(k).offset, layout_->request(k).bytes);
  }
  std::sort(live.begin(), live.end());
  return live;
}

// A request that is not served is over as soon as all that it would have waited for is.
void Replay::Skip(Number k) {
  if (layout_->request(k).offset == StepLayout::kOutside) return;
  skipped_[k] = 1;
  if (waits_[k] == 0) Finish(k);
}

void Replay::Finish(Number k) {
  // A loop with a stack of its own: chains of skipped requests may be as long as the step.
  finished_.push_back(k);
  while (!finished_.empty()) {
    const Number over = finished_.back();
    finished_.pop_back();
    for (const Number later : layout_->waiting_for(over)) {
      if (--waits_[later] == 0 && skipped_[later]) finished_.push_back(later);
    }
  }
}

bool Replay::IsLive(size_t address, size_t bytes) const {
  if (!Covers(address)) return false;
  const uint32_t slot = layout_->FindSlot(address - base_);
  if (slot != layout_->num_slots() && Holds(live_in_[slot], address, bytes)) return true;
  // Into the middle of one, where at other times another one may begin.
  for (const Number k : live_in_) {
    if (Holds(k, address, bytes)) return true;
  }
  return false;
}

bool Replay::Holds(Number k, size_t address, size_t bytes) const {
  if (k == kNobody) return false;
  const size_t begin = base_ + layout_->request(k).offset;
  const size_t end = begin + layout_->request(k).bytes;
  return address >= begin && address < end && bytes <= end - address;
}

}  // namespace memo
