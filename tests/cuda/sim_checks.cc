#include <algorithm>
#include <chrono>
#include <thread>

#include "checks.h"

namespace {

// What the machine reports of a program that calls the runtime itself.
void CheckReports(sim::Kind kind, const std::function<void()>& program) {
  sim::Options options;
  options.num_devices = 2;
  const Run run = RunOn(options, [&](Run*) { program(); });
  const bool reported = std::any_of(run.violations.begin(), run.violations.end(),
                                    [&](const auto& found) { return found.kind == kind; });
  EXPECT(reported, std::string(sim::NameOf(kind)) + " is not reported: " + run.Text());
}

sim::Kernel Touching(void* data) {
  return sim::Kernel{"touch", {}, {sim::RangeOf(data, kBytes)}, [] {}};
}

void CheckMemoryReports() {
  CheckReports(sim::Kind::kUseAfterFree, [] {
    void* data = nullptr;
    cudaMalloc(&data, kBytes);
    cudaFree(data);
    sim::Machine::Get().Launch(nullptr, Touching(data));
  });
  CheckReports(sim::Kind::kOutOfBounds, [] {
    void* data = nullptr;
    cudaMalloc(&data, kBytes - 1);
    sim::Machine::Get().Launch(nullptr, Touching(data));
  });
  CheckReports(sim::Kind::kUnpinned, [] {
    static char pageable[kBytes];
    void* data = nullptr;
    cudaMalloc(&data, kBytes);
    cudaMemcpyAsync(pageable, data, kBytes, cudaMemcpyDeviceToHost, nullptr);
  });
  CheckReports(sim::Kind::kLeak, [] {
    void* data = nullptr;
    cudaMalloc(&data, kBytes);
  });
}

void CheckOrderReports() {
  CheckReports(sim::Kind::kRace, [] {
    void* data = nullptr;
    cudaMalloc(&data, kBytes);
    sim::Machine::Get().Launch(nullptr, Touching(data));
    sim::Machine::Get().Launch(sim::Machine::Get().NewStream(0), Touching(data));
  });
  CheckReports(sim::Kind::kWrongOrder, [] {
    cudaEvent_t event = nullptr;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    cudaStreamWaitEvent(nullptr, event, 0);
  });
  CheckReports(sim::Kind::kWrongOrder, [] {
    cudaEvent_t event = nullptr;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    cudaEventDestroy(event);
    cudaEventRecord(event, nullptr);
  });
  CheckReports(sim::Kind::kLeak, [] {
    cudaEvent_t event = nullptr;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  });
  CheckReports(sim::Kind::kWrongDevice, [] {
    void* data = nullptr;
    cudaSetDevice(1);
    cudaMalloc(&data, kBytes);
    cudaSetDevice(0);
    sim::Machine::Get().Launch(nullptr, Touching(data));
  });
  CheckReports(sim::Kind::kWrongDevice, [] {
    cudaEvent_t event = nullptr;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    cudaEventRecord(event, sim::Machine::Get().NewStream(1));
  });
}

// A copy that nobody waits for may run at once or long after.
void CheckAdversity() {
  int late = 0;
  int early = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    sim::Options options;
    options.seed = seed;
    RunOn(options, [&](Run*) {
      const auto device = NewDevice();
      const memo::StreamId stream = device->CreateStream(memo::Direction::kToHost);
      void* data = device->AllocDevice(kBytes);
      void* host = device->AllocHost(kBytes);
      device->CopyAsync(stream, OneRow(host, data, kBytes));
      const auto event = device->Record(stream);
      int polls = 0;
      for (; !event->Done(); ++polls) std::this_thread::sleep_for(std::chrono::microseconds(5));
      late += polls > 80 ? 1 : 0;
      early += polls < 40 ? 1 : 0;
      device->FreeHost(host);
      device->FreeDevice(data);
    });
  }
  EXPECT(late >= 10, late);
  EXPECT(early >= 1, early);
}

}  // namespace

void CheckSimulation() {
  CheckMemoryReports();
  CheckOrderReports();
  CheckAdversity();
}
