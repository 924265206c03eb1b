// mgran_fast._C: the one extension module. It checks what a raw pointer cannot, then calls the launch ABI.
//
// No torch at build time: a tensor comes as its address (data_ptr), a stream as its handle. The Python side
// (mgran_fast/ops) has checked dtype, shape, device and contiguity, and keeps the tensors alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "regions.h"

namespace py = pybind11;

namespace {

void raise_on(int status) {
  if (status == 0) return;
  if (status == 1) throw std::bad_alloc();
  throw std::runtime_error(status == 3 ? "mgran_fast: the CUDA launch failed" : "mgran_fast: unsupported layout");
}

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
    if (torso < 0 || torso > regions) throw py::value_error("torso is no region of the layout");
    for (const auto& limb : limbs) {
      if (limb[0] < 1 || limb[0] > regions) throw py::value_error("a limb's group is no region of the layout");
      if (limb[1] < 0 || limb[1] >= MGRAN_JOINTS || limb[2] < 0 || limb[2] >= MGRAN_JOINTS)
        throw py::value_error("a limb ends at an unknown joint");
      limbs_.insert(limbs_.end(), limb.begin(), limb.end());
    }
    for (const auto& band : bands) {
      if (band[0] < 1 || band[0] > regions) throw py::value_error("a band's group is no region of the layout");
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

MgranRegions regions_args(std::uintptr_t mask, bool mask_is_float, std::uintptr_t keypoints, std::uintptr_t map,
                          std::int64_t people, std::array<std::int32_t, 2> mask_size, std::array<std::int32_t, 2> size,
                          double limit, float keypoint_threshold, const Layout& layout) {
  if (people < 0 || size[0] < 0 || size[1] < 0) throw py::value_error("sizes must not be negative");
  if (people > 0 && (mask_size[0] < 1 || mask_size[1] < 1)) throw py::value_error("the mask has no pixels");
  // Integer sums of the resampling must stay exact in float64.
  if (static_cast<std::int64_t>(size[0]) * size[1] > (std::int64_t{1} << 26))
    throw py::value_error("a region map has at most 2**26 pixels");
  MgranRegions args{};
  args.mask = reinterpret_cast<const void*>(mask);
  args.keypoints = reinterpret_cast<const float*>(keypoints);
  args.map = reinterpret_cast<std::uint8_t*>(map);
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

  py::class_<Layout>(m, "Layout")
      .def(py::init<const std::vector<std::array<std::int32_t, 3>>&, std::vector<float>,
                    const std::vector<std::array<std::int32_t, 5>>&, std::int32_t, bool, std::int32_t>(),
           py::kw_only(), py::arg("limbs"), py::arg("weights"), py::arg("bands"), py::arg("torso"),
           py::arg("rectangles"), py::arg("regions"));

  m.def(
      "regions_cpu",
      [](std::uintptr_t mask, bool mask_is_float, std::uintptr_t keypoints, std::uintptr_t map, std::int64_t people,
         std::array<std::int32_t, 2> mask_size, std::array<std::int32_t, 2> size, double limit,
         float keypoint_threshold, const Layout& layout, int threads) {
        const MgranRegions args = regions_args(mask, mask_is_float, keypoints, map, people, mask_size, size, limit,
                                               keypoint_threshold, layout);
        int status;
        {
          py::gil_scoped_release unlocked;
          status = mgran_regions_cpu(&args, threads);
        }
        raise_on(status);
      },
      py::arg("mask"), py::arg("mask_is_float"), py::arg("keypoints"), py::arg("map"), py::arg("people"),
      py::arg("mask_size"), py::arg("size"), py::arg("limit"), py::arg("keypoint_threshold"), py::arg("layout"),
      py::arg("threads"));

#ifdef MGRAN_WITH_CUDA
  m.attr("cuda") = MGRAN_CUDA_VERSION;
  m.attr("cuda_architectures") = MGRAN_CUDA_ARCHITECTURE_LIST;
  m.attr("regions_workspace") = 4 * (2 + MGRAN_MAX_REGIONS);
  m.def(
      "regions_cuda",
      [](std::uintptr_t mask, bool mask_is_float, std::uintptr_t keypoints, std::uintptr_t map, std::int64_t people,
         std::array<std::int32_t, 2> mask_size, std::array<std::int32_t, 2> size, double limit,
         float keypoint_threshold, const Layout& layout, std::uintptr_t workspace, std::uintptr_t stream) {
        MgranRegions args = regions_args(mask, mask_is_float, keypoints, map, people, mask_size, size, limit,
                                         keypoint_threshold, layout);
        args.workspace = reinterpret_cast<std::int32_t*>(workspace);
        raise_on(mgran_regions_cuda(&args, reinterpret_cast<void*>(stream)));
      },
      py::arg("mask"), py::arg("mask_is_float"), py::arg("keypoints"), py::arg("map"), py::arg("people"),
      py::arg("mask_size"), py::arg("size"), py::arg("limit"), py::arg("keypoint_threshold"), py::arg("layout"),
      py::arg("workspace"), py::arg("stream"));
#else
  m.attr("cuda") = py::none();
  m.attr("cuda_architectures") = "";
#endif
}
