// A device with one fault: it forgets one wait or one record, or exchanges two copies.
#ifndef MEMO_TESTS_CUDA_FAULTY_DEVICE_H_
#define MEMO_TESTS_CUDA_FAULTY_DEVICE_H_

#include <map>
#include <optional>
#include <set>
#include <utility>

#include "device.h"

// Which call to spoil, counted from 0 in the order of the calls of its sort.
struct Fault {
  enum class Sort { kNone, kDropWait, kDropRecord, kLateCopy };
  Sort sort = Sort::kNone;
  int index = 0;
};

// Passes everything on to `inner` but for the fault. A dropped record gives the stream's event
// before it; a late copy is started after the next call that is no copy.
class FaultyDevice : public memo::Device {
 public:
  FaultyDevice(memo::Device* inner, Fault fault) : inner_(inner), fault_(fault) {}

  void CheckUsable() const override { inner_->CheckUsable(); }
  void* AllocDevice(size_t bytes) override { return inner_->AllocDevice(bytes); }
  void FreeDevice(void* data) override { inner_->FreeDevice(data); }
  void* AllocHost(size_t bytes) override { return inner_->AllocHost(bytes); }
  void FreeHost(void* data) override { inner_->FreeHost(data); }
  memo::StreamId CreateStream(memo::Direction direction) override {
    return inner_->CreateStream(direction);
  }
  void CopyAsync(memo::StreamId stream, const memo::CopySpec& copy) override {
    if (Hits(Fault::Sort::kLateCopy)) {
      late_ = std::make_pair(stream, copy);
    } else {
      inner_->CopyAsync(stream, copy);
    }
  }
  memo::EventPtr Record(memo::StreamId stream) override {
    return Recorded(stream, [&] { return inner_->Record(stream); });
  }
  memo::EventPtr RecordCompute(memo::ComputeStream compute) override {
    return Recorded(kOfCompute, [&] { return inner_->RecordCompute(compute); });
  }
  void StreamWait(memo::StreamId stream, const memo::EventPtr& event) override {
    if (!HitsWait(stream, event)) inner_->StreamWait(stream, event);
  }
  void ComputeWait(memo::ComputeStream compute, const memo::EventPtr& event) override {
    if (!HitsWait(kOfCompute, event)) inner_->ComputeWait(compute, event);
  }
  void HostWait(const memo::EventPtr& event) override {
    if (!HitsWait(kHost, event)) inner_->HostWait(event);
  }
  double Now() const override { return inner_->Now(); }

  // Calls of the fault's sort so far.
  int NumCalls() const { return num_calls_; }

 private:
  bool Hits(Fault::Sort sort) {
    if (sort != fault_.sort) return false;
    return num_calls_++ == fault_.index;
  }

  template <typename Recorder>
  memo::EventPtr Recorded(memo::StreamId stream, Recorder record) {
    memo::EventPtr& last = last_[stream];
    if (last == nullptr || !Hits(Fault::Sort::kDropRecord)) last = record();
    if (late_) inner_->CopyAsync(late_->first, late_->second);
    late_.reset();
    return last;
  }

  // Waits whose loss is no fault, because another one says the same, are not counted: a second
  // wait of a stream for an event, and a copy stream's for what compute has waited for (Transfer
  // lets every copy wait for compute as well).
  bool HitsWait(memo::StreamId stream, const memo::EventPtr& event) {
    const bool implied = stream > kOfCompute && waited_.count({kOfCompute, event}) > 0;
    return waited_.emplace(stream, event).second && !implied && Hits(Fault::Sort::kDropWait);
  }

  static constexpr memo::StreamId kOfCompute = 0;
  static constexpr memo::StreamId kHost = -1;

  memo::Device* const inner_;
  const Fault fault_;
  int num_calls_ = 0;
  std::map<memo::StreamId, memo::EventPtr> last_;
  std::set<std::pair<memo::StreamId, memo::EventPtr>> waited_;
  std::optional<std::pair<memo::StreamId, memo::CopySpec>> late_;
};

#endif  // MEMO_TESTS_CUDA_FAULTY_DEVICE_H_
