#include <cstring>
#include <thread>
#include <vector>

#include "checks.h"

namespace {

constexpr int kThreads = 3;
constexpr int kRounds = 15;

// Fill, out, back elsewhere, look: on the thread's own stream and memory, through a shared
// transfer.
bool GoRounds(memo::CudaDevice* device, memo::Transfer* transfer, int thread) {
  const cudaStream_t stream = sim::Machine::Get().NewStream(0);
  const auto compute = reinterpret_cast<memo::ComputeStream>(stream);
  char* from = static_cast<char*>(device->AllocDevice(kBytes));
  char* to = static_cast<char*>(device->AllocDevice(kBytes));
  bool same = true;
  for (int round = 0; round < kRounds; ++round) {
    const char value = static_cast<char>(thread * 40 + round);
    sim::Machine::Get().Launch(stream, sim::Kernel{"fill", {}, {sim::RangeOf(from, kBytes)}, [=] {
                                                     std::memset(from, value, kBytes);
                                                   }});
    void* host = transfer->AllocHost(kBytes);
    const auto sent = transfer->ToHost(OneRow(host, from, kBytes), compute);
    const auto back = transfer->ToDevice(OneRow(to, host, kBytes), compute);
    transfer->RetireHost(host);
    device->ComputeWait(compute, sent);
    device->ComputeWait(compute, back);
    bool* seen = &same;
    sim::Machine::Get().Launch(stream, sim::Kernel{"look", {sim::RangeOf(to, kBytes)}, {}, [=] {
                                                     *seen = *seen && to[0] == value &&
                                                             to[kBytes - 1] == value;
                                                   }});
  }
  device->HostWait(device->RecordCompute(compute));
  device->FreeDevice(from);
  device->FreeDevice(to);
  return same;
}

}  // namespace

void CheckThreads() {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    sim::Options options;
    options.seed = seed;
    const Run run = RunOn(options, [&](Run* result) {
      const auto device = NewDevice();
      memo::Transfer transfer(device);
      std::vector<int> same(kThreads);
      std::vector<std::thread> threads;
      for (int i = 0; i < kThreads; ++i) {
        threads.emplace_back([&, i] {
          same[static_cast<size_t>(i)] = GoRounds(device.get(), &transfer, i) ? 1 : 0;
        });
      }
      for (std::thread& thread : threads) thread.join();
      for (const int value : same) result->same_bits = result->same_bits && value == 1;
    });
    EXPECT(run.Clean(), "seed " + std::to_string(seed) + ": " + run.Text());
  }
}
