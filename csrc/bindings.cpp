// mgran_fast._C: the one extension module. It checks what a raw pointer cannot, then calls the launch ABI.
//
// No torch at build time: a tensor comes as its address (data_ptr), a stream as its handle. The Python side
// (mgran_fast/ops) has checked dtype, shape, device and contiguity, and keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "align.h"
#include "batchnorm.h"
#include "bindings.h"
#include "conv.h"
#include "cpu/dispatch.h"
#include "crops.h"
#include "inputs.h"
#include "pooling.h"
#include "regions.h"
#include "rows.h"

namespace py = pybind11;

using mgran::Address;
using mgran::define;
using mgran::want;

namespace {

using Size = std::array<std::int32_t, 2>;  // height, width
using Channels = std::array<float, 3>;

// A body layout that owns its tables.
class Layout {
 public:
  Layout(const std::vector<std::array<std::int32_t, 3>>& limbs, std::vector<float> weights,
         const std::vector<std::array<std::int32_t, 5>>& bands, std::int32_t torso, bool rectangles,
         std::int32_t regions)
      : weights_(std::move(weights)), torso_(torso), rectangles_(rectangles), regions_(regions) {
    if (regions < 1 || regions > MGRAN_MAX_REGIONS)
      throw py::value_error("a layout has 1 to " + std::to_string(MGRAN_MAX_REGIONS) + " regions");
    if (limbs.size() > MGRAN_MAX_LIMBS || bands.size() > MGRAN_MAX_LIMBS || weights_.size() != limbs.size())
      throw py::value_error("a layout has at most " + std::to_string(MGRAN_MAX_LIMBS) +
                            " limbs and as many bands, and one weight a limb");
    want(torso >= 0 && torso <= regions, "torso is no region of the layout");
    for (const auto& limb : limbs) {
      want(limb[0] >= 1 && limb[0] <= regions, "a limb's group is no region of the layout");
      want(limb[1] >= 0 && limb[1] < MGRAN_JOINTS && limb[2] >= 0 && limb[2] < MGRAN_JOINTS,
           "a limb ends at an unknown joint");
      limbs_.insert(limbs_.end(), limb.begin(), limb.end());
    }
    for (const auto& band : bands) {
      want(band[0] >= 1 && band[0] <= regions, "a band's group is no region of the layout");
      bands_.insert(bands_.end(), band.begin(), band.end());
    }
  }

  MgranLayout tables() const {
    return {limbs_.data(),
            weights_.data(),
            bands_.data(),
            static_cast<std::int32_t>(weights_.size()),
            static_cast<std::int32_t>(bands_.size() / 5),
            torso_,
            rectangles_ ? 1 : 0,
            regions_};
  }

 private:
  std::vector<std::int32_t> limbs_, bands_;
  std::vector<float> weights_;
  std::int32_t torso_;
  bool rectangles_;
  std::int32_t regions_;
};

MgranCrops crops_args(Address frame, Size frame_size, std::int64_t row_stride, Address boxes, Address out,
                      std::int64_t count, Size size) {
  want(count >= 0 && size[0] >= 0 && size[1] >= 0, "sizes must not be negative");
  want(frame_size[0] >= 0 && frame_size[1] >= 0, "sizes must not be negative");
  want(row_stride >= std::int64_t{3} * frame_size[1], "the rows of the frame overlap");
  MgranCrops args{};
  args.frame = reinterpret_cast<const std::uint8_t*>(frame);
  args.boxes = reinterpret_cast<const float*>(boxes);
  args.out = reinterpret_cast<std::uint8_t*>(out);
  args.count = count;
  args.row_stride = row_stride;
  args.frame_height = frame_size[0];
  args.frame_width = frame_size[1];
  args.height = size[0];
  args.width = size[1];
  return args;
}

MgranRegions regions_args(Address mask, bool mask_is_float, Size mask_size, Address keypoints, Address map,
                          Address workspace, std::int64_t people, Size size, double limit, float keypoint_threshold,
                          const Layout& layout) {
  want(people >= 0 && size[0] >= 0 && size[1] >= 0, "sizes must not be negative");
  want(people == 0 || (mask_size[0] >= 1 && mask_size[1] >= 1), "the mask has no pixels");
  // Integer sums of the resampling must stay exact in float64.
  want(static_cast<std::int64_t>(size[0]) * size[1] <= (std::int64_t{1} << 26),
       "a region map has at most 2**26 pixels");
  MgranRegions args{};
  args.mask = reinterpret_cast<const void*>(mask);
  args.keypoints = reinterpret_cast<const float*>(keypoints);
  args.map = reinterpret_cast<std::uint8_t*>(map);
  args.workspace = reinterpret_cast<std::int32_t*>(workspace);
  args.people = people;
  args.mask_height = mask_size[0];
  args.mask_width = mask_size[1];
  args.height = size[0];
  args.width = size[1];
  args.mask_is_float = mask_is_float;
  args.limit = limit;
  args.keypoint_threshold = keypoint_threshold;
  args.layout = layout.tables();
  return args;
}

using Size3 = std::array<std::int32_t, 3>;  // height, width, channels
// Of a layer that is read: cells, index, background, size.
using Cells = std::tuple<Address, Address, Address, Size3>;
// Of the one that is made: cells, places, their count, size, whether they are spread.
using Made = std::tuple<Address, Address, std::int64_t, Size3, bool>;

void check_size(const Size3& size) { want(size[0] >= 0 && size[1] >= 0 && size[2] >= 0, "sizes must not be negative"); }

MgranCells cells_of(const Cells& layer) {
  const auto& [cells, index, background, size] = layer;
  check_size(size);
  return {reinterpret_cast<const void*>(cells),
          reinterpret_cast<const std::int32_t*>(index),
          reinterpret_cast<const void*>(background),
          size[0],
          size[1],
          size[2]};
}

MgranMade made_of(const Made& layer) {
  const auto& [cells, places, count, size, spread] = layer;
  check_size(size);
  want(count >= 0, "sizes must not be negative");
  return {reinterpret_cast<void*>(cells),
          reinterpret_cast<const std::int32_t*>(places),
          count,
          size[0],
          size[1],
          size[2],
          spread};
}

// Each source is a layer and its (kernel, stride, padding).
MgranConv conv_args(const std::vector<std::pair<Cells, std::array<std::int32_t, 3>>>& sources, const Made& out,
                    const std::vector<Cells>& residual, Address weights, Address scale, Address bias,
                    Address residual_scale, std::int32_t dtype, std::int32_t out_dtype, bool relu) {
  want(sources.size() == 1 || sources.size() == 2, "a convolution has one or two sources");
  want(dtype == MGRAN_FLOAT32 || dtype == MGRAN_BFLOAT16 || dtype == MGRAN_UINT8, "unknown dtype");
  want(out_dtype == dtype || out_dtype == MGRAN_FLOAT32, "the result has the dtype of the sources, or float32");
  const std::int32_t group = dtype == MGRAN_FLOAT32 ? 1 : dtype == MGRAN_BFLOAT16 ? 2 : 4;
  MgranConv args{};
  for (const auto& [layer, geometry] : sources) {
    MgranConvSource& source = args.sources[args.count++];
    source.x = cells_of(layer);
    want(source.x.channels % group == 0, "the channels of a source must fill groups of 4 bytes");
    want(geometry[0] >= 1 && geometry[1] >= 1 && geometry[2] >= 0, "kernel and stride must be positive");
    source.kernel = geometry[0];
    source.stride = geometry[1];
    source.padding = geometry[2];
    want((source.x.height + 2 * source.padding - source.kernel) / source.stride + 1 == std::get<3>(out)[0] &&
             (source.x.width + 2 * source.padding - source.kernel) / source.stride + 1 == std::get<3>(out)[1],
         "the grid of the result does not fit that of a source");
  }
  args.out = made_of(out);
  want(residual.size() <= 1, "a convolution has one residual or none");
  if (!residual.empty()) {
    args.residuals = 1;
    args.residual = cells_of(residual[0]);
    want(std::get<3>(residual[0]) == std::get<3>(out), "the residual must have the grid and channels of the result");
  }
  args.weights = reinterpret_cast<const void*>(weights);
  args.scale = reinterpret_cast<const float*>(scale);
  args.bias = reinterpret_cast<const float*>(bias);
  args.residual_scale = reinterpret_cast<const float*>(residual_scale);
  args.dtype = dtype;
  args.out_dtype = out_dtype;
  args.relu = relu;
  return args;
}

MgranInputs inputs_args(Address crops, Address map, Address out, Address workspace, std::int64_t people,
                        std::int64_t pixels, std::int32_t regions, std::int32_t dtype, float scale, Channels mean,
                        Channels std) {
  want(people >= 0 && pixels >= 0, "sizes must not be negative");
  want(regions >= 0 && regions <= 255, "a region map has at most 255 regions");
  want(dtype >= MGRAN_FLOAT32 && dtype <= MGRAN_BFLOAT16, "unknown dtype");
  MgranInputs args{};
  args.crops = reinterpret_cast<const std::uint8_t*>(crops);
  args.map = reinterpret_cast<const std::uint8_t*>(map);
  args.out = reinterpret_cast<void*>(out);
  args.workspace = reinterpret_cast<std::int32_t*>(workspace);
  args.people = people;
  args.pixels = pixels;
  args.regions = regions;
  args.dtype = dtype;
  args.scale = scale;
  for (int c = 0; c < 3; ++c) {
    args.mean[c] = mean[c];
    args.std[c] = std[c];
  }
  return args;
}

MgranAlign align_args(Address crops, Address out, std::int32_t dtype, float scale, Channels mean, Channels std,
                      Address mask, bool mask_is_float, Size mask_size, Address keypoints, Address map,
                      Address workspace, std::int64_t people, Size size, double limit, float keypoint_threshold,
                      const Layout& layout) {
  MgranAlign args{};
  args.regions = regions_args(mask, mask_is_float, mask_size, keypoints, map, workspace, people, size, limit,
                              keypoint_threshold, layout);
  args.inputs = inputs_args(crops, 0, out, 0, people, static_cast<std::int64_t>(size[0]) * size[1],
                            args.regions.layout.regions, dtype, scale, mean, std);
  return args;
}

MgranPooling pooling_args(Address features, Address map, Address region, Address out, Address grad_out,
                          Address grad_features, std::int64_t rows, std::int64_t people, std::int64_t channels,
                          Size size, Size map_size, std::int32_t dtype, std::int32_t mode, float power) {
  want(rows >= 0 && people >= 0 && channels >= 0, "sizes must not be negative");
  want(size[0] >= 0 && size[1] >= 0 && map_size[0] >= 0 && map_size[1] >= 0, "sizes must not be negative");
  want(people == 0 ? rows == 0 : rows % people == 0, "rows must be a multiple of people");
  want(dtype >= MGRAN_FLOAT32 && dtype <= MGRAN_BFLOAT16, "unknown dtype");
  want(mode >= MGRAN_MEAN && mode <= MGRAN_GEM, "unknown mode");
  MgranPooling args{};
  args.features = reinterpret_cast<const void*>(features);
  args.map = reinterpret_cast<const std::uint8_t*>(map);
  args.region = reinterpret_cast<const std::int64_t*>(region);
  args.out = reinterpret_cast<void*>(out);
  args.grad_out = reinterpret_cast<const void*>(grad_out);
  args.grad_features = reinterpret_cast<void*>(grad_features);
  args.rows = rows;
  args.people = people;
  args.channels = channels;
  args.height = size[0];
  args.width = size[1];
  args.map_height = map_size[0];
  args.map_width = map_size[1];
  args.dtype = dtype;
  args.mode = mode;
  args.power = power;
  return args;
}

MgranBatchnorm batchnorm_args(Address x, Address residual, Address grad, Address out, Address out_residual,
                              Address weight, Address bias, Address mean, Address var, Address invstd, Address scale,
                              Address shift, Address grad_bias, Address grad_weight, Address grad_bias_mean,
                              Address grad_weight_mean, Address counts, std::int64_t rows, std::int64_t cells,
                              std::int64_t channels, std::int32_t groups, std::int32_t dtype, bool relu,
                              std::int32_t phases, float eps) {
  want(rows >= 0 && cells >= 0 && channels >= 0, "sizes must not be negative");
  want(groups >= 1 && rows % groups == 0, "rows must be a multiple of groups");
  want(dtype >= MGRAN_FLOAT32 && dtype <= MGRAN_BFLOAT16, "unknown dtype");
  want(phases >= 1 && phases <= (MGRAN_BATCHNORM_SUM | MGRAN_BATCHNORM_WRITE), "unknown phases");
  MgranBatchnorm args{};
  args.x = reinterpret_cast<const void*>(x);
  args.residual = reinterpret_cast<const void*>(residual);
  args.grad = reinterpret_cast<const void*>(grad);
  args.out = reinterpret_cast<void*>(out);
  args.out_residual = reinterpret_cast<void*>(out_residual);
  args.weight = reinterpret_cast<const float*>(weight);
  args.bias = reinterpret_cast<const float*>(bias);
  args.mean = reinterpret_cast<float*>(mean);
  args.var = reinterpret_cast<float*>(var);
  args.invstd = reinterpret_cast<float*>(invstd);
  args.scale = reinterpret_cast<float*>(scale);
  args.shift = reinterpret_cast<float*>(shift);
  args.grad_bias = reinterpret_cast<float*>(grad_bias);
  args.grad_weight = reinterpret_cast<float*>(grad_weight);
  args.grad_bias_mean = reinterpret_cast<const float*>(grad_bias_mean);
  args.grad_weight_mean = reinterpret_cast<const float*>(grad_weight_mean);
  args.counts = reinterpret_cast<const float*>(counts);
  args.rows = rows;
  args.cells = cells;
  args.channels = channels;
  args.groups = groups;
  args.dtype = dtype;
  args.relu = relu;
  args.phases = phases;
  args.eps = eps;
  return args;
}

MgranRows rows_args(Address x, Address index, Address starts, Address members, Address base, Address out,
                    std::int64_t rows, std::int64_t count, std::int64_t channels, std::int64_t pitch,
                    std::int32_t dtype) {
  want(rows >= 0 && count >= 0 && channels >= 0 && pitch >= 0, "sizes must not be negative");
  want(rows <= INT32_MAX && count <= INT32_MAX, "there are more rows than an index can tell");
  want(dtype >= MGRAN_FLOAT32 && dtype <= MGRAN_BFLOAT16, "unknown dtype");
  MgranRows args{};
  args.x = reinterpret_cast<const void*>(x);
  args.index = reinterpret_cast<const std::int32_t*>(index);
  args.starts = reinterpret_cast<std::int32_t*>(starts);
  args.members = reinterpret_cast<std::int32_t*>(members);
  args.base = reinterpret_cast<const void*>(base);
  args.out = reinterpret_cast<void*>(out);
  args.rows = rows;
  args.count = count;
  args.channels = channels;
  args.pitch = pitch;
  args.dtype = dtype;
  return args;
}

constexpr const char* kCrops[] = {"frame", "frame_size", "row_stride", "boxes", "out", "count", "size"};
constexpr const char* kRegions[] = {"mask",   "mask_is_float", "mask_size", "keypoints",          "map",   "workspace",
                                    "people", "size",          "limit",     "keypoint_threshold", "layout"};
constexpr const char* kConv[] = {"sources",        "out",   "residual",  "weights", "scale", "bias",
                                 "residual_scale", "dtype", "out_dtype", "relu"};
constexpr const char* kInputs[] = {"crops",   "map",   "out",   "workspace", "people", "pixels",
                                   "regions", "dtype", "scale", "mean",      "std"};
constexpr const char* kAlign[] = {
    "crops",     "out",       "dtype", "scale",     "mean",   "std",  "mask",  "mask_is_float",
    "mask_size", "keypoints", "map",   "workspace", "people", "size", "limit", "keypoint_threshold",
    "layout"};
constexpr const char* kPooling[] = {"features", "map",      "region", "out",      "grad_out", "grad_features", "rows",
                                    "people",   "channels", "size",   "map_size", "dtype",    "mode",          "power"};

constexpr const char* kRows[] = {"x",    "index", "starts",   "members", "base", "out",
                                 "rows", "count", "channels", "pitch",   "dtype"};
constexpr const char* kBatchnorm[] = {
    "x",      "residual", "grad",  "out",      "out_residual", "weight",      "bias",           "mean",
    "var",    "invstd",   "scale", "shift",    "grad_bias",    "grad_weight", "grad_bias_mean", "grad_weight_mean",
    "counts", "rows",     "cells", "channels", "groups",       "dtype",       "relu",           "phases",
    "eps"};

const char* isa_name() {
  switch (mgran::isa()) {
    case mgran::Isa::avx512:
      return "avx512";
    case mgran::Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

void limit_isa(const std::string& most) {
  if (most == "portable")
    mgran::limit_isa(mgran::Isa::portable);
  else if (most == "avx2")
    mgran::limit_isa(mgran::Isa::avx2);
  else if (most == "avx512")
    mgran::limit_isa(mgran::Isa::avx512);
  else
    throw py::value_error("an instruction set is portable, avx2 or avx512, not " + most);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of mgran_fast. Use them through mgran_fast.ops.";
  m.attr("version") = MGRAN_VERSION;
  m.attr("compiler") = MGRAN_COMPILER;
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  m.def("isa", isa_name, "The instruction set that the CPU kernels use: portable, avx2 or avx512.");
  m.def("limit_isa", limit_isa, py::arg("most"), "Use no instruction set above this one.");

  py::class_<Layout>(m, "Layout")
      .def(py::init<const std::vector<std::array<std::int32_t, 3>>&, std::vector<float>,
                    const std::vector<std::array<std::int32_t, 5>>&, std::int32_t, bool, std::int32_t>(),
           py::kw_only(), py::arg("limbs"), py::arg("weights"), py::arg("bands"), py::arg("torso"),
           py::arg("rectangles"), py::arg("regions"));
  // int32 elements of a person's workspace on the GPU.
  m.attr("regions_workspace") = 4 * (2 + MGRAN_MAX_REGIONS);

  define(m, "crops_cpu", crops_args, mgran_crops_cpu, kCrops);
  define(m, "regions_cpu", regions_args, mgran_regions_cpu, kRegions);
  define(m, "inputs_cpu", inputs_args, mgran_inputs_cpu, kInputs);
  define(m, "align_cpu", align_args, mgran_align_cpu, kAlign);
  define(m, "batchnorm_cpu", batchnorm_args, mgran_batchnorm_cpu, kBatchnorm);
  define(m, "batchnorm_backward_cpu", batchnorm_args, mgran_batchnorm_backward_cpu, kBatchnorm);
  define(m, "conv_cpu", conv_args, mgran_conv_cpu, kConv);
  bind_network(m);
  bind_metrics(m);
  define(m, "rows_gather_cpu", rows_args, mgran_rows_gather_cpu, kRows);
  define(m, "rows_total_cpu", rows_args, mgran_rows_total_cpu, kRows);
  define(m, "rows_invert_cpu", rows_args, mgran_rows_invert_cpu, kRows);
  define(m, "pooling_cpu", pooling_args, mgran_pooling_cpu, kPooling);
  define(m, "pooling_backward_cpu", pooling_args, mgran_pooling_backward_cpu, kPooling);

#ifdef MGRAN_WITH_CUDA
  m.attr("cuda") = MGRAN_CUDA_VERSION;
  m.attr("cuda_architectures") = MGRAN_CUDA_ARCHITECTURE_LIST;
  define(m, "crops_cuda", crops_args, mgran_crops_cuda, kCrops);
  define(m, "regions_cuda", regions_args, mgran_regions_cuda, kRegions);
  define(m, "inputs_cuda", inputs_args, mgran_inputs_cuda, kInputs);
  define(m, "align_cuda", align_args, mgran_align_cuda, kAlign);
#else
  m.attr("cuda") = py::none();
  m.attr("cuda_architectures") = "";
#endif
}
