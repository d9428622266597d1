#include "bindings/cuda_allocator.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "bindings/replay.h"
#include "cuda/cuda_allocator.h"

namespace py = pybind11;

namespace {

using memo::CudaAllocator;
using memo::CudaAllocatorCounters;
using memo::CudaAllocators;
using memo::StepLayout;
using Released = py::call_guard<py::gil_scoped_release>;

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

// Local to the module: memo_train._core has classes of the same types.
void BindSteps(py::module_& m) {
  memo::BindReplayCounts(m);
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

void BindCudaAllocators(py::module_& m) {
  BindSteps(m);
  BindAllocatorCounters(m);
  BindAllocators(m);
}
