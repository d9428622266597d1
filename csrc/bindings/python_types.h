// What several of the extension modules show to Python: errors, counters, addresses as integers.
#ifndef MEMO_BINDINGS_PYTHON_TYPES_H_
#define MEMO_BINDINGS_PYTHON_TYPES_H_

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <exception>
#include <tuple>
#include <vector>

#include "base/check.h"
#include "copies/link.h"
#include "device.h"
#include "memory/host_pool.h"
#include "memory/replay.h"

namespace memo {

inline uintptr_t Address(const void* data) { return reinterpret_cast<uintptr_t>(data); }
inline void* Pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

// (target, source, bytes) of plain copies.
using PlainCopies = std::vector<std::tuple<uintptr_t, uintptr_t, size_t>>;
inline std::vector<CopySpec> Specs(const PlainCopies& copies) {
  std::vector<CopySpec> specs;
  specs.reserve(copies.size());
  for (const auto& [target, source, bytes] : copies) {
    specs.push_back(CopySpec{Pointer(target), Pointer(source), 1, bytes, bytes, bytes});
  }
  return specs;
}

// C++ errors as the exceptions of memo_train.device.errors; for
// register_local_exception_translator.
inline void TranslateErrors(std::exception_ptr pointer) {
  const auto raise = [](const char* name, const std::exception& error) {
    const pybind11::module_ errors = pybind11::module_::import("memo_train.device.errors");
    PyErr_SetString(errors.attr(name).ptr(), error.what());
  };
  try {
    std::rethrow_exception(pointer);
  } catch (const InvalidArgument& error) {
    raise("InvalidDeviceArgument", error);
  } catch (const DeviceMemoryExceeded& error) {
    raise("DeviceMemoryExceeded", error);
  } catch (const HostMemoryExceeded& error) {
    raise("HostMemoryExceeded", error);
  } catch (const ForkedProcess& error) {
    raise("ForkedProcess", error);
  } catch (const CudaError& error) {
    raise("CudaError", error);
  }
}

// Types are local to each module, as several have classes of the same ones.
inline void BindSharedCounters(pybind11::module_& m) {
  const pybind11::module_local local;
  pybind11::class_<ReplayCounts::Departure>(m, "Departure", local)
      .def_readonly("bytes", &ReplayCounts::Departure::bytes)
      .def_readonly("expected_bytes", &ReplayCounts::Departure::expected_bytes)
      .def_readonly("place", &ReplayCounts::Departure::place)
      .def_readonly("in_use", &ReplayCounts::Departure::in_use)
      .def_readonly("op", &ReplayCounts::Departure::op);
  pybind11::class_<ReplayCounts>(m, "ReplayCounts", local)
      .def_readonly("planned", &ReplayCounts::planned)
      .def_readonly("outside", &ReplayCounts::outside)
      .def_readonly("small", &ReplayCounts::small)
      .def_readonly("departed", &ReplayCounts::departed)
      .def_readonly("missing", &ReplayCounts::missing)
      .def_readonly("given_up", &ReplayCounts::given_up)
      .def_readonly("first", &ReplayCounts::first);
  pybind11::class_<HostPoolCounters>(m, "HostPoolCounters", local)
      .def_readonly("used_bytes", &HostPoolCounters::used_bytes)
      .def_readonly("peak_bytes", &HostPoolCounters::peak_bytes)
      .def_readonly("cached_bytes", &HostPoolCounters::cached_bytes)
      .def_readonly("cap_bytes", &HostPoolCounters::cap_bytes);
  pybind11::class_<LinkCounters>(m, "LinkCounters", local)
      .def_readonly("copies", &LinkCounters::copies)
      .def_readonly("bytes", &LinkCounters::bytes)
      .def_readonly("busy_s", &LinkCounters::busy_s);
}

}  // namespace memo

#endif  // MEMO_BINDINGS_PYTHON_TYPES_H_
