// memo_train._cuda: the CUDA device as Python sees it. Addresses and streams are integers.
// No logic here: what a binding does is in the headers of csrc, what an argument
// means in memo_train/device.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "bindings/cuda_allocator.h"
#include "bindings/python_errors.h"
#include "copies/transfer.h"
#include "cuda/cuda_device.h"

namespace py = pybind11;

namespace {

using memo::CopySpec;
using memo::CudaDevice;
using memo::Transfer;
using memo::TransferEvent;
// Calls ask Python for the current stream while they hold a mutex: nobody may wait for that mutex
// with the interpreter lock in hand.
using Released = py::call_guard<py::gil_scoped_release>;
using Shape = std::array<size_t, 4>;

uintptr_t Address(const void* data) { return reinterpret_cast<uintptr_t>(data); }
void* Pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

CopySpec Rows(uintptr_t target, uintptr_t source, const Shape& shape) {
  return CopySpec{Pointer(target), Pointer(source), shape[0], shape[1], shape[2], shape[3]};
}

// Local to the module: memo_train._core has classes of the same types.
void BindCounters(py::module_& m) {
  const py::module_local local;
  py::class_<memo::CudaMemoryCounters>(m, "CudaMemoryCounters", local)
      .def_readonly("used_bytes", &memo::CudaMemoryCounters::used_bytes)
      .def_readonly("peak_bytes", &memo::CudaMemoryCounters::peak_bytes)
      .def_readonly("live_allocations", &memo::CudaMemoryCounters::live_allocations)
      .def_readonly("allocations", &memo::CudaMemoryCounters::allocations);
  py::class_<memo::HostPoolCounters>(m, "HostPoolCounters", local)
      .def_readonly("used_bytes", &memo::HostPoolCounters::used_bytes)
      .def_readonly("peak_bytes", &memo::HostPoolCounters::peak_bytes)
      .def_readonly("cached_bytes", &memo::HostPoolCounters::cached_bytes)
      .def_readonly("cap_bytes", &memo::HostPoolCounters::cap_bytes);
  py::class_<memo::LinkCounters>(m, "LinkCounters", local)
      .def_readonly("copies", &memo::LinkCounters::copies)
      .def_readonly("bytes", &memo::LinkCounters::bytes)
      .def_readonly("busy_s", &memo::LinkCounters::busy_s);
  py::class_<memo::CudaCounters>(m, "CudaCounters", local)
      .def_readonly("device", &memo::CudaCounters::device)
      .def_readonly("host", &memo::CudaCounters::host)
      .def_readonly("to_host", &memo::CudaCounters::to_host)
      .def_readonly("to_device", &memo::CudaCounters::to_device)
      .def_readonly("stalls", &memo::CudaCounters::stalls)
      .def_readonly("stall_s", &memo::CudaCounters::stall_s);
}

void BindDevice(py::module_& m) {
  py::class_<CudaDevice, std::shared_ptr<CudaDevice>>(m, "CudaDevice", py::module_local())
      .def(py::init<int, CudaDevice::CurrentStream>(), py::arg("ordinal"),
           py::arg("current_stream"))
      .def("check_usable", &CudaDevice::CheckUsable)
      .def(
          "alloc_device",
          [](CudaDevice& self, size_t bytes) { return Address(self.AllocDevice(bytes)); },
          Released())
      .def(
          "free_device", [](CudaDevice& self, uintptr_t data) { self.FreeDevice(Pointer(data)); },
          Released())
      .def("owns", [](const CudaDevice& self, uintptr_t data) { return self.Owns(Pointer(data)); })
      .def(
          "set_host_cap",
          [](CudaDevice& self, std::optional<size_t> bytes) { self.host_pool().SetCap(bytes); },
          Released())
      .def("synchronize", &CudaDevice::Synchronize, Released())
      .def("synchronize_compute", &CudaDevice::SynchronizeCompute, Released())
      .def("now", &CudaDevice::Now)
      .def("counters", &CudaDevice::Counters)
      .def("reset_peak", &CudaDevice::ResetPeak)
      .def("reset_counters", &CudaDevice::ResetCounters)
      .def("keep_forever", [](py::object self) { self.release(); })
      .def_property_readonly("ordinal", &CudaDevice::ordinal)
      .def_property_readonly("memory_bytes", &CudaDevice::MemoryBytes)
      .def_property_readonly("numa_node", &CudaDevice::numa_node);
}

void BindTransfer(py::module_& m) {
  py::class_<TransferEvent>(m, "Event", py::module_local())
      .def("done", &TransferEvent::Done)
      .def("wait", &TransferEvent::Wait, Released());
  py::class_<Transfer>(m, "Transfer", py::module_local())
      .def(py::init([](std::shared_ptr<CudaDevice> device) {
             return std::make_unique<Transfer>(std::move(device));
           }),
           py::arg("device"))
      .def(
          "alloc_host", [](Transfer& self, size_t bytes) { return Address(self.AllocHost(bytes)); },
          Released())
      .def(
          "retire_host", [](Transfer& self, uintptr_t data) { self.RetireHost(Pointer(data)); },
          Released())
      .def(
          "to_host",
          [](Transfer& self, uintptr_t target, uintptr_t source, const Shape& shape) {
            return TransferEvent(self.device(), self.ToHost(Rows(target, source, shape)));
          },
          Released())
      .def(
          "to_device",
          [](Transfer& self, uintptr_t target, uintptr_t source, const Shape& shape) {
            return TransferEvent(self.device(), self.ToDevice(Rows(target, source, shape)));
          },
          Released());
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA device of memo_train: copy streams, events and pinned host memory.";
  m.attr("COMPILER") = __VERSION__;
  m.attr("CUDA_VERSION") = MEMO_CUDA_VERSION;
  m.def("device_count", &CudaDevice::Count);
  py::register_local_exception_translator(&memo::TranslateErrors);
  BindCounters(m);
  BindDevice(m);
  BindTransfer(m);
  BindCudaAllocators(m);
}
