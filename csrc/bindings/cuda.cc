// memo_train._cuda: the CUDA device as Python sees it. Addresses and streams are integers.
// No logic here: what a binding does is in the headers of csrc, what an argument
// means in memo_train/device.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/python_types.h"
#include "copies/transfer.h"
#include "cuda/cuda_allocator.h"
#include "cuda/cuda_device.h"

namespace py = pybind11;

namespace {

using memo::Address;
using memo::CopySpec;
using memo::CudaAllocator;
using memo::CudaAllocatorCounters;
using memo::CudaAllocators;
using memo::CudaDevice;
using memo::Pointer;
using memo::StepLayout;
using memo::Transfer;
using memo::TransferEvent;
// Nothing here calls back into Python: the stream that kernels go to is an argument. Under a mutex
// of the core Python could collect garbage, and what is freed there may need that mutex.
using Released = py::call_guard<py::gil_scoped_release>;
using Shape = std::array<size_t, 4>;

CopySpec Rows(uintptr_t target, uintptr_t source, const Shape& shape) {
  return CopySpec{Pointer(target), Pointer(source), shape[0], shape[1], shape[2], shape[3]};
}

// Local to the module: memo_train._core has classes of the same types.
void BindCounters(py::module_& m) {
  memo::BindSharedCounters(m);
  const py::module_local local;
  py::class_<memo::CudaCounters::Memory>(m, "CudaMemoryCounters", local)
      .def_readonly("used_bytes", &memo::CudaCounters::Memory::used_bytes)
      .def_readonly("peak_bytes", &memo::CudaCounters::Memory::peak_bytes)
      .def_readonly("live_allocations", &memo::CudaCounters::Memory::live_allocations)
      .def_readonly("allocations", &memo::CudaCounters::Memory::allocations);
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
      .def(py::init<int>(), py::arg("ordinal"))
      .def("check_usable", &CudaDevice::CheckUsable)
      .def(
          "alloc_device",
          [](CudaDevice& self, size_t bytes) { return Address(self.AllocDevice(bytes)); },
          Released())
      .def(
          "free_device", [](CudaDevice& self, uintptr_t data) { self.FreeDevice(Pointer(data)); },
          Released())
      .def("owns", [](const CudaDevice& self, uintptr_t data) { return self.Owns(Pointer(data)); })
      .def("reserve_host", &CudaDevice::ReserveHost, Released())
      .def(
          "set_host_cap",
          [](CudaDevice& self, std::optional<size_t> bytes) { self.host_pool().SetCap(bytes); },
          Released())
      .def("synchronize", &CudaDevice::Synchronize, Released())
      .def("synchronize_compute", &CudaDevice::SynchronizeCompute, py::arg("compute"), Released())
      .def("now", &CudaDevice::Now)
      .def("counters", &CudaDevice::Counters)
      .def("reset_peak", &CudaDevice::ResetPeak)
      .def("reset_counters", &CudaDevice::ResetCounters)
      // One reference too few is given back, for objects that outlive the interpreter.
      .def("keep_forever", [](py::object self) { self.release(); })
      .def_property_readonly("ordinal", &CudaDevice::ordinal)
      .def_property_readonly("memory_bytes", &CudaDevice::MemoryBytes)
      .def_property_readonly("numa_node", &CudaDevice::numa_node);
}

void BindTransfer(py::module_& m) {
  py::class_<TransferEvent>(m, "Event", py::module_local())
      .def("done", &TransferEvent::Done)
      .def("wait", &TransferEvent::Wait, py::arg("compute"), Released());
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
          [](Transfer& self, uintptr_t target, uintptr_t source, const Shape& shape,
             uintptr_t compute) {
            return TransferEvent(self.device(), self.ToHost(Rows(target, source, shape), compute));
          },
          Released())
      .def(
          "to_device",
          [](Transfer& self, uintptr_t target, uintptr_t source, const Shape& shape,
             uintptr_t compute) {
            return TransferEvent(self.device(),
                                 self.ToDevice(Rows(target, source, shape), compute));
          },
          Released())
      .def(
          "all_to_host",
          [](Transfer& self, const memo::PlainCopies& copies, uintptr_t compute) {
            return TransferEvent(self.device(), self.AllToHost(memo::Specs(copies), compute));
          },
          Released())
      .def(
          "all_to_device",
          [](Transfer& self, const memo::PlainCopies& copies, uintptr_t compute) {
            return TransferEvent(self.device(), self.AllToDevice(memo::Specs(copies), compute));
          },
          Released());
}

CudaAllocator& Of(int ordinal) { return CudaAllocators::OfProcess().Of(ordinal); }

cudaStream_t Stream(uintptr_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

// Rows of an array [n, 2]. Not structured arrays as in memo_train._core, whose types numpy knows
// already.
template <typename T>
std::vector<T> Pairs(const py::array_t<uint64_t, py::array::c_style>& array) {
  const auto rows = array.unchecked<2>();
  std::vector<T> found;
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) found.push_back(T{rows(i, 0), rows(i, 1)});
  return found;
}

// An array [events, 4] of kind, source, offset and bytes.
py::array_t<uint64_t> Columns(const std::vector<memo::MemoryEvent>& events) {
  py::array_t<uint64_t> array({static_cast<py::ssize_t>(events.size()), py::ssize_t{4}});
  auto rows = array.mutable_unchecked<2>();
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) {
    const auto& [kind, source, offset, bytes] = events[static_cast<size_t>(i)];
    rows(i, 0) = kind;
    rows(i, 1) = source;
    rows(i, 2) = offset;
    rows(i, 3) = bytes;
  }
  return array;
}

void BindSteps(py::module_& m) {
  using Array = py::array_t<uint64_t, py::array::c_style>;
  py::class_<StepLayout, std::shared_ptr<StepLayout>>(m, "StepLayout", py::module_local())
      .def(py::init([](const Array& requests, const Array& marks, size_t smallest_bytes) {
             return std::make_shared<StepLayout>(Pairs<StepLayout::Request>(requests),
                                                 Pairs<StepLayout::Mark>(marks), smallest_bytes,
                                                 CudaAllocator::kBlockBytes);
           }),
           py::arg("requests"), py::arg("marks"), py::arg("smallest_bytes"))
      .def_property_readonly("peak_bytes", &StepLayout::peak_bytes)
      .def("__len__", &StepLayout::size)
      .def_readonly_static("OUTSIDE", &StepLayout::kOutside);
  m.attr("ALIGNMENT_BYTES") = CudaAllocator::kBlockBytes;
}

void BindAllocatorCounters(py::module_& m) {
  py::class_<CudaAllocatorCounters>(m, "CudaAllocatorCounters", py::module_local())
      .def_readonly("allocated_bytes", &CudaAllocatorCounters::allocated_bytes)
      .def_readonly("allocated_peak_bytes", &CudaAllocatorCounters::allocated_peak_bytes)
      .def_readonly("reserved_bytes", &CudaAllocatorCounters::reserved_bytes)
      .def_readonly("reserved_peak_bytes", &CudaAllocatorCounters::reserved_peak_bytes)
      .def_readonly("pending_bytes", &CudaAllocatorCounters::pending_bytes)
      .def_readonly("pending_frees", &CudaAllocatorCounters::pending_frees)
      .def_readonly("planned_requests", &CudaAllocatorCounters::planned_requests)
      .def_readonly("unplanned_requests", &CudaAllocatorCounters::unplanned_requests)
      .def_readonly("frees", &CudaAllocatorCounters::frees)
      .def_readonly("planned_waits", &CudaAllocatorCounters::planned_waits)
      .def_readonly("device_mallocs", &CudaAllocatorCounters::device_mallocs)
      .def_readonly("device_frees", &CudaAllocatorCounters::device_frees)
      .def_readonly("retries", &CudaAllocatorCounters::retries)
      .def_readonly("refusals", &CudaAllocatorCounters::refusals)
      .def_readonly("cap_bytes", &CudaAllocatorCounters::cap_bytes);
}

void BindAllocators(py::module_& m) {
  m.def("allocator_counters", [](int ordinal) { return Of(ordinal).Counters(); });
  m.def("allocator_reset_peak", [](int ordinal) { Of(ordinal).ResetPeak(); });
  m.def(
      "allocator_set_cap",
      [](int ordinal, std::optional<size_t> bytes) { Of(ordinal).SetCap(bytes); },
      py::arg("ordinal"), py::arg("cap_bytes"));
  m.def("allocator_release_idle", [](int ordinal) { Of(ordinal).ReleaseIdle(); }, Released());
  m.def("allocator_last_error", [] { return CudaAllocators::OfProcess().LastError(); });
  m.def(
      "begin_step",
      [](int ordinal, std::shared_ptr<StepLayout> layout, uintptr_t stream) {
        return Of(ordinal).BeginStep(std::move(layout), Stream(stream));
      },
      py::arg("ordinal"), py::arg("layout"), py::arg("stream"), Released());
  m.def(
      "start_recording",
      [](int ordinal, uintptr_t stream) { Of(ordinal).StartRecording(Stream(stream)); },
      py::arg("ordinal"), py::arg("stream"));
  m.def("stop_recording", [](int ordinal) { return Columns(Of(ordinal).StopRecording()); });
  m.def("mark", [](int ordinal, uint64_t value) { Of(ordinal).Mark(value); });
  m.def("end_step", [](int ordinal) { return Of(ordinal).EndStep(); });
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
  BindSteps(m);
  BindAllocatorCounters(m);
  BindAllocators(m);
}
