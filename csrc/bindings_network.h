// The binding of `network`, apart from the others: it owns tables.
#pragma once
#include <pybind11/pybind11.h>

void bind_network(pybind11::module_& m);
