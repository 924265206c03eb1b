// mgran_fast._C.Network: a trunk's tables, and what is run with them. Used by mgran_fast/ops/network.py, which keeps
// the tensors alive whose addresses come here.
#include "bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "network.h"

namespace py = pybind11;

namespace {

using mgran::Address;
using mgran::raise_on;
using mgran::want;

using Size = std::array<std::int32_t, 2>;                              // height, width
using Layer = std::tuple<std::array<std::int32_t, 3>, int, Address>;   // (height, width, channels), dtype, background
using Source = std::tuple<std::int32_t, std::array<std::int32_t, 3>>;  // layer, (kernel, stride, padding)
// Sources, residual layer or -1, addresses of weights, scale, bias and the residual's scale.
using Convolution = std::tuple<std::vector<Source>, std::int32_t, Address, Address, Address, Address>;

class Network {
 public:
  explicit Network(const Layer& input) {
    add(input);
    want(layers_[0].channels == 4, "the input has 4 channels");
  }

  void pool(const Layer& layer, const Source& source) {
    MgranStep step{};
    step.pool = 1;
    step.residual = -1;
    sources(step, layer, {source});
    const MgranLayer& from = layers_[static_cast<std::size_t>(step.source[0])];
    want(std::get<0>(layer)[2] == from.channels && std::get<1>(layer) == from.dtype,
         "max pooling keeps channels and dtype");
    add(layer);
    steps_.push_back(step);
  }

  void convolution(const Layer& layer, const Convolution& given) {
    const auto& [from, residual, weights, scale, bias, residual_scale] = given;
    MgranStep step{};
    step.residual = residual;
    step.relu = 1;
    step.weights = reinterpret_cast<const void*>(weights);
    step.scale = reinterpret_cast<const float*>(scale);
    step.bias = reinterpret_cast<const float*>(bias);
    step.residual_scale = reinterpret_cast<const float*>(residual_scale);
    sources(step, layer, from);
    const std::int32_t dtype = layers_[static_cast<std::size_t>(step.source[0])].dtype;
    const std::int32_t group = dtype == MGRAN_FLOAT32 ? 1 : dtype == MGRAN_BFLOAT16 ? 2 : 4;
    for (int s = 0; s < step.count; ++s) {
      const MgranLayer& source = layers_[static_cast<std::size_t>(step.source[s])];
      want(source.dtype == dtype, "the sources have one dtype");
      want(source.channels % group == 0, "the channels of a source must fill groups of 4 bytes");
    }
    want(std::get<1>(layer) == dtype || std::get<1>(layer) == MGRAN_FLOAT32,
         "a layer has the dtype of its sources, or float32");
    want((dtype == MGRAN_UINT8) == (scale != 0), "bytes, and they alone, have a scale");
    want(weights != 0 && bias != 0, "weights and bias are missing");
    if (residual >= 0) {
      want(static_cast<std::size_t>(residual) < layers_.size(), "a residual must have been made before");
      const MgranLayer& other = layers_[static_cast<std::size_t>(residual)];
      const auto& size = std::get<0>(layer);
      want(other.height == size[0] && other.width == size[1] && other.channels == size[2] && other.dtype == dtype,
           "the residual must have the grid and channels of the result, and the dtype of the sources");
    }
    add(layer);
    steps_.push_back(step);
  }

  MgranNetwork tables() const { return {layers_.data(), steps_.data(), static_cast<std::int64_t>(steps_.size())}; }
  std::size_t size() const { return steps_.size(); }
  void background(std::size_t layer, Address address) {
    want(layer < layers_.size(), "there is no such layer");
    layers_[layer].background = reinterpret_cast<const void*>(address);
  }

 private:
  void add(const Layer& layer) {
    const auto& [size, dtype, background] = layer;
    want(size[0] > 0 && size[1] > 0 && size[2] > 0, "a layer must have cells");
    want(dtype == MGRAN_FLOAT32 || dtype == MGRAN_BFLOAT16 || dtype == MGRAN_UINT8, "unknown dtype");
    layers_.push_back({size[0], size[1], size[2], dtype, reinterpret_cast<const void*>(background)});
  }

  void sources(MgranStep& step, const Layer& layer, const std::vector<Source>& from) {
    want(from.size() == 1 || from.size() == 2, "a convolution has one or two sources");
    for (const auto& [source, geometry] : from) {
      const int s = step.count++;
      want(source >= 0 && static_cast<std::size_t>(source) < layers_.size(), "a source must have been made before");
      want(geometry[0] >= 1 && geometry[1] >= 1 && geometry[2] >= 0, "kernel and stride must be positive");
      step.source[s] = source;
      step.kernel[s] = geometry[0];
      step.stride[s] = geometry[1];
      step.padding[s] = geometry[2];
      const MgranLayer& l = layers_[static_cast<std::size_t>(source)];
      want(l.height + 2 * geometry[2] >= geometry[0] && l.width + 2 * geometry[2] >= geometry[0] &&
               (l.height + 2 * geometry[2] - geometry[0]) / geometry[1] + 1 == std::get<0>(layer)[0] &&
               (l.width + 2 * geometry[2] - geometry[0]) / geometry[1] + 1 == std::get<0>(layer)[1],
           "the grid of a layer does not fit that of its source");
    }
  }

  std::vector<MgranLayer> layers_;
  std::vector<MgranStep> steps_;
};

// The cells of one batch that are computed.
class Plan {
 public:
  Plan(const Network& network, Address map, std::int64_t people, Size size, std::int32_t first, std::int32_t inputs,
       bool whole, bool keep, int threads)
      : layers_(network.size() + 1), counts_(layers_), offsets_(layers_) {
    want(people >= 0 && size[0] >= 1 && size[1] >= 1, "the map must have pixels");
    want(first >= 0 && inputs >= 1 && first + inputs <= 256, "a region map has at most 255 regions");
    const MgranNetwork tables = network.tables();
    want(tables.layers[0].height == size[0] && tables.layers[0].width == size[1], "the map must have the input's size");
    people_.map = reinterpret_cast<const std::uint8_t*>(map);
    people_.people = people;
    people_.height = size[0];
    people_.width = size[1];
    people_.first = first;
    people_.inputs = inputs;
    const std::int64_t images = people * inputs;
    std::int64_t cells = 0;
    for (std::size_t i = 0; i < layers_; ++i) {
      const std::int64_t one = static_cast<std::int64_t>(tables.layers[i].height) * tables.layers[i].width;
      want(one * images <= std::numeric_limits<std::int32_t>::max(), "too many people at once");
      cells += one * images;
    }
    // Not cleared: what is read has been written.
    index_.reset(new std::int32_t[static_cast<std::size_t>(cells)]);
    places_.reset(new std::int32_t[static_cast<std::size_t>(cells)]);
    plan_.index = index_.get();
    plan_.places = places_.get();
    plan_.counts = counts_.data();
    plan_.offsets = offsets_.data();
    int status;
    {
      const py::gil_scoped_release unlocked;
      status = mgran_network_plan_cpu(&tables, &people_, whole, keep, &plan_, threads);
    }
    raise_on(status);
  }

  void run(const Network& network, Address crops, Address map, Address workspace, std::int64_t bytes, Address out,
           int threads) const {
    want(network.size() + 1 == layers_, "the plan is of another network");
    want(bytes >= plan_.bytes, "the workspace is too small");
    MgranPeople people = people_;
    people.crops = reinterpret_cast<const std::uint8_t*>(crops);
    people.map = reinterpret_cast<const std::uint8_t*>(map);
    const MgranNetwork tables = network.tables();
    int status;
    {
      const py::gil_scoped_release unlocked;
      status = mgran_network_cpu(&tables, &people, &plan_, reinterpret_cast<void*>(workspace),
                                 reinterpret_cast<void*>(out), threads);
    }
    raise_on(status);
  }

  std::int64_t bytes() const { return plan_.bytes; }
  std::int64_t multiply_adds() const { return plan_.multiply_adds; }
  const std::vector<std::int64_t>& offsets() const { return offsets_; }
  const std::vector<std::int64_t>& counts() const { return counts_; }

  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

 private:
  std::size_t layers_;
  MgranPeople people_{};
  MgranPlan plan_{};
  std::vector<std::int64_t> counts_, offsets_;
  std::unique_ptr<std::int32_t[]> index_, places_;
};

}  // namespace

void bind_network(py::module_& m) {
  py::class_<Network>(m, "Network")
      .def(py::init<const Layer&>(), py::arg("input"))
      .def("pool", &Network::pool, py::arg("layer"), py::arg("source"))
      .def("convolution", &Network::convolution, py::arg("layer"), py::arg("given"))
      .def("background", &Network::background, py::arg("layer"), py::arg("address"));
  py::class_<Plan>(m, "Plan")
      .def(py::init<const Network&, Address, std::int64_t, Size, std::int32_t, std::int32_t, bool, bool, int>(),
           py::arg("network"), py::kw_only(), py::arg("map"), py::arg("people"), py::arg("size"), py::arg("first"),
           py::arg("inputs"), py::arg("whole"), py::arg("keep"), py::arg("threads"))
      .def("run", &Plan::run, py::arg("network"), py::kw_only(), py::arg("crops"), py::arg("map"), py::arg("workspace"),
           py::arg("bytes"), py::arg("out"), py::arg("threads"))
      .def_property_readonly("bytes", &Plan::bytes)
      .def_property_readonly("counts", &Plan::counts)
      .def_property_readonly("multiply_adds", &Plan::multiply_adds)
      .def_property_readonly("offsets", &Plan::offsets);
  m.attr("network_cpu") = true;
}
