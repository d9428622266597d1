// The Python module memo_planner._packer; binds, decides nothing.
#include "pack/packer.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;
using memo::pack::Packer;

namespace {

using Array = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

std::vector<int64_t> ToVector(const Array& array) {
  return std::vector<int64_t>(array.data(), array.data() + array.size());
}

}  // namespace

PYBIND11_MODULE(_packer, m) {
  m.doc() = "The native packer of memo_planner: offsets for buffers with known lifetimes.";
  py::class_<Packer>(m, "Packer")
      .def(py::init([](const Array& lower, const Array& upper, const Array& size) {
             return std::make_unique<Packer>(ToVector(lower), ToVector(upper), ToVector(size));
           }),
           py::arg("lower"), py::arg("upper"), py::arg("size"))
      .def(
          "run",
          [](Packer& packer, std::optional<int64_t> capacity, double seconds, uint64_t seed) {
            packer.Run({capacity, seconds, seed});
          },
          py::arg("capacity"), py::arg("seconds"), py::arg("seed"),
          py::call_guard<py::gil_scoped_release>())
      .def("stop", &Packer::Stop)
      .def("offsets",
           [](const Packer& packer) {
             return Array(static_cast<py::ssize_t>(packer.offsets().size()),
                          packer.offsets().data());
           })
      .def_property_readonly("peak", &Packer::peak)
      .def_property_readonly("lower_bound", &Packer::lower_bound)
      .def_property_readonly("nodes", &Packer::nodes);
}
