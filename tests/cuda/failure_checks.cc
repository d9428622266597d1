#include <sys/wait.h>
#include <unistd.h>

#include "checks.h"

namespace {

constexpr size_t kPitch = 100;

void UseEverything() {
  const auto device = NewDevice(1);
  memo::Transfer transfer(device);
  void* data = device->AllocDevice(kBytes);
  void* host = transfer.AllocHost(kBytes);
  const memo::CopySpec rows{host, data, 10, 50, 50, kPitch};
  device->ComputeWait(kCompute, transfer.ToHost(rows, kCompute));
  device->HostWait(transfer.ToDevice(OneRow(data, host, kBytes), kCompute));
  device->Synchronize();
  transfer.RetireHost(host);
  device->FreeDevice(data);
  device->CheckUsable();
}

// A clean-up that fails cannot throw where it happens; the next use of the device does.
void CheckKeptFailure() {
  RunOn(sim::Options(), [&](Run*) {
    const auto device = NewDevice();
    void* small = device->AllocHost(1);
    device->FreeHost(small);
    sim::Machine::Get().FailAt(2, cudaErrorLaunchFailure);
    device->host_pool().SetCap(1);
    std::string text;
    try {
      device->RecordCompute(kCompute);
    } catch (const memo::CudaError& error) {
      text = error.what();
    }
    EXPECT(Contains(text, "cudaHostUnregister failed on CUDA device 0"), text);
  });
}

}  // namespace

void CheckFailures() {
  std::string failed;
  const uint64_t num_calls = RunWithFailure(0, UseEverything, &failed).num_calls;
  EXPECT(num_calls > 30, num_calls);
  uint64_t num_thrown = 0;
  for (uint64_t call = 1; call <= num_calls; ++call) {
    const Run run = RunWithFailure(call, UseEverything, &failed);
    if (run.refused.empty()) continue;  // in a destructor, or it was not called this time
    ++num_thrown;
    EXPECT(Contains(run.refused, failed + " failed on CUDA device 1"), run.refused);
    EXPECT(Contains(run.refused, "(code 719)"), run.refused);
    EXPECT(OnlyLeftovers(run), failed + ": " + run.Text());
  }
  EXPECT(num_thrown * 2 > num_calls, num_thrown);
  CheckKeptFailure();
}

void CheckFork() {
  const Run run = RunOn(sim::Options(), [&](Run*) {
    const auto device = NewDevice();
    void* host = device->AllocHost(kBytes);
    const pid_t child = fork();
    if (child == 0) {
      bool refused = false;
      try {
        device->CheckUsable();
      } catch (const memo::ForkedProcess&) {
        refused = true;
      }
      const uint64_t before = sim::Machine::Get().NumCalls();
      device->~CudaDevice();
      _exit(refused && sim::Machine::Get().NumCalls() == before ? 0 : 1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    EXPECT(status == 0, status);
    device->FreeHost(host);
  });
  EXPECT(run.Clean(), run.Text());
}
