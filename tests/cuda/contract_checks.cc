#include <unistd.h>

#include <cstring>
#include <vector>

#include "checks.h"

namespace {

// The message of the error of type E that `body` raises, or empty.
template <typename E, typename Body>
std::string Refusal(Body body) {
  try {
    body();
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

void CheckClean(const char* what, const sim::Options& options,
                const std::function<void()>& program) {
  const Run run = RunOn(options, [&](Run*) { program(); });
  EXPECT(run.Clean(), std::string(what) + ": " + run.Text());
}

void CheckRefusals() {
  sim::Options options;
  options.num_devices = 2;
  options.device_bytes = 1 << 20;
  options.pinned_bytes = 1 << 20;
  CheckClean("refusals", options, [] {
    const auto device = NewDevice();
    const auto big = [&] { device->AllocDevice(2 << 20); };
    const std::string memory = Refusal<memo::DeviceMemoryExceeded>(big);
    EXPECT(Contains(memory, "asked 2097152 bytes") && Contains(memory, "free 1048576 bytes"),
           memory);
    const std::string pin = Refusal<memo::HostMemoryExceeded>([&] { device->AllocHost(2 << 20); });
    EXPECT(Contains(pin, "refuses to map or pin"), pin);
    device->host_pool().SetCap(kBytes);
    const std::string cap =
        Refusal<memo::HostMemoryExceeded>([&] { device->AllocHost(kBytes + 1); });
    EXPECT(Contains(cap, "asked 4097 bytes") && Contains(cap, "cap 4096 bytes"), cap);
    const std::string ordinal = Refusal<memo::InvalidArgument>([] { NewDevice(2); });
    EXPECT(Contains(ordinal, "no CUDA device 2") && Contains(ordinal, "sees 2"), ordinal);
    device->FreeHost(device->AllocHost(kBytes));
  });
}

void CheckForeignMemory() {
  sim::Options options;
  options.num_devices = 2;
  CheckClean("foreign memory", options, [] {
    const auto device = NewDevice(1);
    const auto other = NewDevice(0);
    const memo::StreamId stream = device->CreateStream(memo::Direction::kToHost);
    void* host = device->AllocHost(kBytes);
    void* far = other->AllocDevice(kBytes);
    void* near = device->AllocDevice(kBytes);
    EXPECT(device->Owns(near) && !device->Owns(far) && !device->Owns(host), "owns");
    EXPECT(!device->Owns(nullptr) && !device->Owns(&stream), "owns");
    for (void* source : {far, host, static_cast<void*>(static_cast<char*>(near) + 1)}) {
      const std::string text = Refusal<memo::InvalidArgument>(
          [&] { device->CopyAsync(stream, OneRow(host, source, kBytes)); });
      EXPECT(Contains(text, "not memory of CUDA device 1"), text);
    }
    EXPECT(!Refusal<memo::InvalidArgument>([&] { device->FreeDevice(far); }).empty(), "free");
    device->FreeDevice(near);
    EXPECT(!Refusal<memo::InvalidArgument>([&] { device->FreeDevice(near); }).empty(), "twice");
    other->FreeDevice(far);
  });
}

void CheckNoDevice() {
  sim::Options options;
  options.num_devices = 0;
  CheckClean("no device", options, [] {
    EXPECT(memo::CudaDevice::Count() == 0, "count");
    const std::string text = Refusal<memo::InvalidArgument>([] { NewDevice(); });
    EXPECT(Contains(text, "sees 0") && Contains(text, "use the CPU device"), text);
  });
}

// Rows further apart than the runtime copies at once, and rows that are not.
void CheckPitch(size_t max_pitch_bytes) {
  sim::Options options;
  options.max_pitch_bytes = max_pitch_bytes;
  CheckClean("pitch", options, [] {
    constexpr size_t kRows = 5, kRow = 100, kPitch = 700;
    const auto device = NewDevice();
    memo::Transfer transfer(device);
    char* wide = static_cast<char*>(device->AllocDevice(kRows * kPitch));
    char* host = static_cast<char*>(transfer.AllocHost(kRows * kPitch));
    for (size_t i = 0; i < kRows * kRow; ++i) host[i] = static_cast<char>(i);
    sim::Machine::Get().HostWrite(sim::RangeOf(host, kRows * kRow));
    // One device range, both directions: the order is the caller's.
    device->HostWait(
        transfer.ToDevice(memo::CopySpec{wide, host, kRows, kRow, kPitch, kRow}, kCompute));
    device->HostWait(transfer.ToHost(OneRow(host, wide, kRows * kPitch), kCompute));
    for (size_t i = 0; i < kRows * kPitch; ++i) {
      const size_t row = i / kPitch, column = i % kPitch;
      const auto want = column < kRow ? static_cast<char>(row * kRow + column) : '\xFF';
      EXPECT(host[i] == want, i);
    }
    transfer.FreeHost(host);
    device->FreeDevice(wide);
  });
}

void CheckCounts() {
  CheckClean("counts", sim::Options(), [] {
    const auto device = NewDevice();
    memo::Transfer transfer(device);
    void* data = device->AllocDevice(kBytes);
    std::memset(data, 1, kBytes);
    size_t num_events = 0;
    const double begin_s = device->Now();
    for (int i = 0; i < 100; ++i) {
      void* host = transfer.AllocHost(kBytes);
      const auto sent = transfer.ToHost(OneRow(host, data, kBytes), kCompute);
      device->ComputeWait(kCompute, sent);
      device->HostWait(sent);
      transfer.FreeHost(host);
      num_events = std::max(num_events, sim::Machine::Get().NumEvents());
    }
    // The copy's, compute's, one between, and those of the intervals that are still open.
    EXPECT(num_events <= 150, num_events);
    device->SynchronizeCompute(kCompute);
    const memo::CudaCounters counters = device->Counters();
    const double passed_s = device->Now() - begin_s;
    EXPECT(counters.to_host.busy_s > 0 && counters.to_host.busy_s < passed_s, "busy");
    EXPECT(counters.to_device.busy_s == 0, counters.to_device.busy_s);
    EXPECT(counters.stall_s > 0 && counters.stall_s < passed_s, counters.stall_s);
    EXPECT(counters.to_host.copies == 100 && counters.to_host.bytes == 100 * kBytes, "copies");
    EXPECT(counters.to_device.copies == 0 && counters.device.peak_bytes == kBytes, "peak");
    EXPECT(counters.host.used_bytes == 0 && counters.host.cached_bytes == kBytes, "host");
    EXPECT(counters.stalls > 0 && counters.stalls <= 100, counters.stalls);
    device->ResetCounters();
    const memo::CudaCounters none = device->Counters();
    EXPECT(none.to_host.copies == 0 && none.to_host.busy_s == 0, "reset of copies");
    EXPECT(none.stalls == 0 && none.stall_s == 0, "reset of stalls");
    device->FreeDevice(data);
  });
}

// A range whose copy is under way may be given up; under the cap the next one waits for it.
void CheckRetiredRanges() {
  CheckClean("retired ranges", sim::Options(), [] {
    const auto device = NewDevice();
    memo::Transfer transfer(device);
    void* data = device->AllocDevice(kBytes);
    device->host_pool().SetCap(kBytes);
    for (int i = 0; i < 20; ++i) {
      void* host = transfer.AllocHost(kBytes);
      transfer.ToHost(OneRow(host, data, kBytes), kCompute);
      transfer.RetireHost(host);
      EXPECT(!Refusal<memo::InvalidArgument>([&] { transfer.RetireHost(host); }).empty(), "twice");
    }
    void* held = transfer.AllocHost(kBytes);
    EXPECT(!Refusal<memo::HostMemoryExceeded>([&] { transfer.AllocHost(1); }).empty(), "held");
    transfer.FreeHost(held);
    device->Synchronize();
    device->FreeDevice(data);
  });
}

}  // namespace

void CheckContract() {
  CheckRefusals();
  CheckForeignMemory();
  CheckNoDevice();
  CheckPitch(size_t{1} << 30);
  CheckPitch(500);
  CheckCounts();
  CheckRetiredRanges();
}
