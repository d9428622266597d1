// memo_train._core: the core's classes as Python sees them. Addresses and streams are integers.
// No logic here: what a binding does is in the headers of csrc, what an argument
// means in memo_train/device.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "bindings/python_types.h"
#include "copies/transfer.h"
#include "cpu/cpu_device.h"
#include "memory/arena.h"
#include "memory/host_pool.h"

namespace py = pybind11;

namespace {

using memo::Address;
using memo::Arena;
using memo::CopySpec;
using memo::CpuDevice;
using memo::HostPool;
using memo::Pointer;
using memo::StepLayout;
using memo::Transfer;
using memo::TransferEvent;
constexpr memo::ComputeStream kCaller = 0;  // on the CPU
using Released = py::call_guard<py::gil_scoped_release>;

template <typename Function>
uintptr_t FunctionAddress(Function* function) {
  return reinterpret_cast<uintptr_t>(function);
}

CopySpec Rows(uintptr_t target, uintptr_t source, const py::tuple& shape) {
  return CopySpec{Pointer(target),         Pointer(source),         shape[0].cast<size_t>(),
                  shape[1].cast<size_t>(), shape[2].cast<size_t>(), shape[3].cast<size_t>()};
}

template <typename T>
std::vector<T> Rows(const py::array_t<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

void BindCounters(py::module_& m) {
  memo::BindSharedCounters(m);
  py::class_<memo::ArenaCounters>(m, "ArenaCounters")
      .def_readonly("used_bytes", &memo::ArenaCounters::used_bytes)
      .def_readonly("peak_bytes", &memo::ArenaCounters::peak_bytes)
      .def_readonly("high_water_bytes", &memo::ArenaCounters::high_water_bytes)
      .def_readonly("largest_hole_bytes", &memo::ArenaCounters::largest_hole_bytes)
      .def_readonly("live_allocations", &memo::ArenaCounters::live_allocations)
      .def_readonly("allocations", &memo::ArenaCounters::allocations)
      .def_readonly("cap_bytes", &memo::ArenaCounters::cap_bytes)
      .def_readonly("reserved_bytes", &memo::ArenaCounters::reserved_bytes)
      .def_readonly("planned_bytes", &memo::ArenaCounters::planned_bytes);
  py::class_<memo::StopWatch::Reading>(m, "StallCounters")
      .def_readonly("stalls", &memo::StopWatch::Reading::intervals)
      .def_readonly("seconds", &memo::StopWatch::Reading::seconds);
  py::class_<memo::DeviceCounters>(m, "DeviceCounters")
      .def_readonly("device", &memo::DeviceCounters::device)
      .def_readonly("host", &memo::DeviceCounters::host)
      .def_readonly("to_host", &memo::DeviceCounters::to_host)
      .def_readonly("to_device", &memo::DeviceCounters::to_device)
      .def_readonly("stalls", &memo::DeviceCounters::stalls);
}

void BindReplay(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(StepLayout::Request, bytes, offset);
  PYBIND11_NUMPY_DTYPE(StepLayout::Mark, value, first);
  py::class_<StepLayout, std::shared_ptr<StepLayout>>(m, "StepLayout")
      .def(py::init([](const py::array_t<StepLayout::Request>& requests,
                       const py::array_t<StepLayout::Mark>& marks, size_t smallest_bytes) {
             return std::make_shared<StepLayout>(Rows(requests), Rows(marks), smallest_bytes,
                                                 Arena::kAlignment);
           }),
           py::arg("requests"), py::arg("marks"), py::arg("smallest_bytes"))
      .def_property_readonly("peak_bytes", &StepLayout::peak_bytes)
      .def("__len__", &StepLayout::size)
      .def_readonly_static("OUTSIDE", &StepLayout::kOutside);
}

void BindMemory(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(memo::MemoryEvent, kind, source, offset, bytes);
  py::class_<Arena>(m, "Arena")
      .def(py::init<size_t>(), py::arg("reserve_bytes"))
      .def(
          "alloc", [](Arena& self, size_t bytes) { return Address(self.Alloc(bytes)); }, Released())
      .def(
          "free", [](Arena& self, uintptr_t data) { self.Free(Pointer(data)); }, Released())
      .def("set_cap", &Arena::SetCap, py::arg("cap_bytes"))
      .def("set_large_bytes", &Arena::SetLargeBytes, py::arg("bytes"))
      .def("set_poison", &Arena::SetPoison, py::arg("on"))
      .def("owns", [](const Arena& self, uintptr_t data) { return self.Owns(Pointer(data)); })
      .def("is_live", [](const Arena& self, uintptr_t data,
                         size_t bytes) { return self.IsLive(Pointer(data), bytes); })
      .def("counters", &Arena::Counters)
      .def("reset_peak", &Arena::ResetPeak)
      .def("start_recording", &Arena::StartRecording)
      .def("mark", &Arena::Mark, py::arg("value"))
      .def("stop_recording",
           [](Arena& self) {
             const auto events = self.StopRecording();
             return py::array_t<memo::MemoryEvent>(events.size(), events.data());
           })
      .def("begin_step", &Arena::BeginStep, py::arg("layout"))
      .def("end_step", &Arena::EndStep)
      .def("lock_for_fork", &Arena::LockForFork)
      .def("unlock_after_fork", &Arena::UnlockAfterFork)
      .def("hook_entry", [](Arena& self) {
        return py::make_tuple(Address(&self), FunctionAddress(&CpuDevice::AllocForHook),
                              FunctionAddress(&CpuDevice::FreeForHook));
      });
  py::class_<HostPool>(m, "HostPool")
      .def(py::init<>())
      .def(
          "alloc", [](HostPool& self, size_t bytes) { return Address(self.Alloc(bytes)); },
          Released())
      .def(
          "free", [](HostPool& self, uintptr_t data) { self.Free(Pointer(data)); }, Released())
      .def("reserve", &HostPool::Reserve, Released())
      .def("set_cap", &HostPool::SetCap, py::arg("cap_bytes"))
      .def("set_poison", &HostPool::SetPoison, py::arg("on"))
      .def("counters", &HostPool::Counters)
      .def("reset_peak", &HostPool::ResetPeak);
}

void BindDevice(py::module_& m) {
  py::class_<CpuDevice, std::shared_ptr<CpuDevice>>(m, "CpuDevice")
      .def(py::init<size_t>(), py::arg("reserve_bytes"))
      .def_property_readonly("arena", &CpuDevice::arena,
                             py::return_value_policy::reference_internal)
      .def_property_readonly("host_pool", &CpuDevice::host_pool,
                             py::return_value_policy::reference_internal)
      .def("set_bandwidth", &CpuDevice::SetBandwidth, py::arg("to_host"), py::arg("to_device"))
      .def("set_adversary", &CpuDevice::SetAdversary, py::arg("seed"))
      .def("set_poison", &CpuDevice::SetPoison, py::arg("on"))
      .def("synchronize", &CpuDevice::Synchronize, Released())
      .def("now", &CpuDevice::Now)
      .def("counters", &CpuDevice::Counters)
      .def("reset_peak", &CpuDevice::ResetPeak)
      .def("reset_counters", &CpuDevice::ResetCounters)
      // One reference too few is given back, for objects that outlive the interpreter.
      .def("keep_forever", [](py::object self) { self.release(); });
  py::class_<TransferEvent>(m, "Event")
      .def("done", &TransferEvent::Done)
      .def("wait", [](const TransferEvent& self) { self.Wait(kCaller); }, Released());
  py::class_<Transfer>(m, "Transfer")
      .def(py::init([](std::shared_ptr<CpuDevice> device) {
             return std::make_unique<Transfer>(std::move(device));
           }),
           py::arg("device"))
      .def(
          "alloc_host", [](Transfer& self, size_t bytes) { return Address(self.AllocHost(bytes)); },
          Released())
      .def(
          "free_host", [](Transfer& self, uintptr_t data) { self.FreeHost(Pointer(data)); },
          Released())
      .def("to_host",
           [](Transfer& self, uintptr_t target, uintptr_t source, const py::tuple& shape) {
             return TransferEvent(self.device(), self.ToHost(Rows(target, source, shape), kCaller));
           })
      .def("to_device",
           [](Transfer& self, uintptr_t target, uintptr_t source, const py::tuple& shape) {
             return TransferEvent(self.device(),
                                  self.ToDevice(Rows(target, source, shape), kCaller));
           })
      .def("all_to_host",
           [](Transfer& self, const memo::PlainCopies& copies) {
             return TransferEvent(self.device(), self.AllToHost(memo::Specs(copies), kCaller));
           })
      .def("all_to_device", [](Transfer& self, const memo::PlainCopies& copies) {
        return TransferEvent(self.device(), self.AllToDevice(memo::Specs(copies), kCaller));
      });
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The CPU device of memo_train: arena, host pool and copy engine.";
  m.attr("COMPILER") = __VERSION__;
  py::register_local_exception_translator(&memo::TranslateErrors);
  BindCounters(m);
  BindReplay(m);
  BindMemory(m);
  BindDevice(m);
}
