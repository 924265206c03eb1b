// What the bindings share: the one extension module is written in several files.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <utility>

#include "abi.h"

void bind_network(pybind11::module_& m);
void bind_metrics(pybind11::module_& m);

namespace mgran {

// Of a tensor's first element, or a stream's handle.
using Address = std::uintptr_t;

inline void raise_on(int status) {
  if (status == MGRAN_OK) return;
  if (status == MGRAN_NO_MEMORY) throw std::bad_alloc();
  throw std::runtime_error(status == MGRAN_LAUNCH ? "mgran_fast: the CUDA launch failed"
                                                  : "mgran_fast: the kernel does not support these arguments");
}

inline void want(bool condition, const char* message) {
  if (!condition) throw pybind11::value_error(message);
}

// Adds a function that takes the arguments of `make`, by name and in any order, and one more: the number of threads
// on the CPU, the stream's handle on the GPU.
template <typename Args, typename... P, std::size_t... I>
void define(pybind11::module_& m, const char* name, Args (*make)(P...), int (*run)(const Args*, int),
            const char* const (&names)[sizeof...(P)], std::index_sequence<I...>) {
  m.def(
      name,
      [make, run](P... p, int threads) {
        const Args args = make(std::forward<P>(p)...);
        int status;
        {
          pybind11::gil_scoped_release unlocked;
          status = run(&args, threads);
        }
        raise_on(status);
      },
      pybind11::kw_only(), pybind11::arg(names[I])..., pybind11::arg("threads"));
}

template <typename Args, typename... P, std::size_t... I>
void define(pybind11::module_& m, const char* name, Args (*make)(P...), int (*run)(const Args*, void*),
            const char* const (&names)[sizeof...(P)], std::index_sequence<I...>) {
  m.def(
      name,
      [make, run](P... p, Address stream) {
        const Args args = make(std::forward<P>(p)...);
        raise_on(run(&args, reinterpret_cast<void*>(stream)));
      },
      pybind11::kw_only(), pybind11::arg(names[I])..., pybind11::arg("stream"));
}

template <typename Args, typename Last, typename... P>
void define(pybind11::module_& m, const char* name, Args (*make)(P...), int (*run)(const Args*, Last),
            const char* const (&names)[sizeof...(P)]) {
  define(m, name, make, run, names, std::index_sequence_for<P...>{});
}

}  // namespace mgran
