// What became of a step's requests as Python sees it, for each module that serves steps.
#ifndef MEMO_BINDINGS_REPLAY_H_
#define MEMO_BINDINGS_REPLAY_H_

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "memory/replay.h"

namespace memo {

// Local to the module, as several have classes of the same types.
inline void BindReplayCounts(pybind11::module_& m) {
  const pybind11::module_local local;
  pybind11::class_<Departure>(m, "Departure", local)
      .def_readonly("bytes", &Departure::bytes)
      .def_readonly("expected_bytes", &Departure::expected_bytes)
      .def_readonly("place", &Departure::place)
      .def_readonly("in_use", &Departure::in_use)
      .def_readonly("op", &Departure::op);
  pybind11::class_<ReplayCounts>(m, "ReplayCounts", local)
      .def_readonly("planned", &ReplayCounts::planned)
      .def_readonly("outside", &ReplayCounts::outside)
      .def_readonly("small", &ReplayCounts::small)
      .def_readonly("departed", &ReplayCounts::departed)
      .def_readonly("missing", &ReplayCounts::missing)
      .def_readonly("given_up", &ReplayCounts::given_up)
      .def_readonly("first", &ReplayCounts::first);
}

}  // namespace memo

#endif  // MEMO_BINDINGS_REPLAY_H_
