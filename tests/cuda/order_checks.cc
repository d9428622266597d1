#include <cstring>

#include "checks.h"

namespace {

// Out, back elsewhere, and out again from a third place, through one host range; compute waits only
// at the end, so that all order between the copies is the transfer's own.
class RoundTrip {
 public:
  explicit RoundTrip(Fault fault)
      : device_(NewDevice()),
        faulty_(std::make_shared<FaultyDevice>(device_.get(), fault)),
        transfer_(faulty_) {
    for (char*& place : places_) place = static_cast<char*>(device_->AllocDevice(kBytes));
  }

  // Whether the bytes were right.
  bool Go() {
    Fill(places_[0], 10);
    void* host = transfer_.AllocHost(kBytes);
    transfer_.ToHost(OneRow(host, places_[0], kBytes), kCompute);
    const auto back = transfer_.ToDevice(OneRow(places_[1], host, kBytes), kCompute);
    Fill(places_[2], 77);
    const auto again = transfer_.ToHost(OneRow(host, places_[2], kBytes), kCompute);
    faulty_->ComputeWait(kCompute, back);
    bool same = false;
    Check(places_[1], 10, &same);
    faulty_->HostWait(again);
    sim::Machine::Get().HostRead(sim::RangeOf(host, kBytes));
    const bool seen = *static_cast<char*>(host) == 77;
    device_->HostWait(device_->RecordCompute(kCompute));
    transfer_.RetireHost(host);
    for (char* place : places_) device_->FreeDevice(place);
    return same && seen;
  }

  int NumCalls() const { return faulty_->NumCalls(); }

 private:
  void Fill(char* data, char value) {
    sim::Machine::Get().Launch(nullptr, sim::Kernel{"fill", {}, {sim::RangeOf(data, kBytes)}, [=] {
                                                      std::memset(data, value, kBytes);
                                                    }});
  }
  void Check(const char* data, char value, bool* same) {
    sim::Machine::Get().Launch(nullptr, sim::Kernel{"look", {sim::RangeOf(data, kBytes)}, {}, [=] {
                                                      *same = data[0] == value &&
                                                              data[kBytes - 1] == value;
                                                    }});
  }

  std::shared_ptr<memo::CudaDevice> device_;
  std::shared_ptr<FaultyDevice> faulty_;
  memo::Transfer transfer_;
  char* places_[3] = {};
};

Run GoRound(uint64_t seed, Fault fault) {
  sim::Options options;
  options.seed = seed;
  return RunOn(options, [&](Run* run) {
    RoundTrip trip(fault);
    run->same_bits = trip.Go();
    run->num_fault_calls = trip.NumCalls();
  });
}

}  // namespace

void CheckOrder() {
  constexpr uint64_t kSeeds = 20;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Fault fault{Fault::Sort::kDropWait, -1};
    const Run whole = GoRound(seed, fault);
    EXPECT(whole.Clean(), "seed " + std::to_string(seed) + ": " + whole.Text());
    // First and third copy after compute's fill, second and third after the copy before, compute
    // and host after the last ones. The second copy after compute: its target is new memory.
    constexpr int kNeeded[] = {0, 2, 3, 4, 5, 6};
    EXPECT(whole.num_fault_calls == 7, whole.num_fault_calls);
    for (const int index : kNeeded) {
      fault.index = index;
      EXPECT(!GoRound(seed, fault).Clean(),
             "wait " + std::to_string(index) + ", seed " + std::to_string(seed));
    }
  }
}
