// Launch ABI of `network`: crops and region map -> the features of a whole trunk, computed in windows.
// Definition: mgran_fast/reference/network.py.
//
// An aligned input is 0 away from its region, so every layer away from the region is what it is for an empty image: the
// background, which depends on the weights alone. And only the cells that are pooled are wanted. Of every layer and
// image one window is computed: what its region can influence and what is wanted of it.
#pragma once
#include "conv.h"

extern "C" {

struct MgranLayer {
  std::int32_t height, width, channels;
  std::int32_t dtype;      // MGRAN_FLOAT32, MGRAN_BFLOAT16 or MGRAN_UINT8
  const void* background;  // [height, width, channels], or null for zeros
};

// Makes layer i + 1, where i is its place among the steps.
struct MgranStep {
  std::int32_t pool;   // 1: the maximum over the cells of the kernel of its one source, which is never negative
  std::int32_t count;  // of the sources: 1 or 2
  std::int32_t source[2], kernel[2], stride[2], padding[2];  // layers, and the geometry
  std::int32_t residual;                                     // a layer, or -1
  std::int32_t relu;
  const void* weights;  // these as in conv.h
  const float* scale;
  const float* bias;
  const float* residual_scale;
};

struct MgranNetwork {
  const MgranLayer*
      layers;              // [count + 1]; 0 is the input, with 4 channels: red, green, blue, 255; 0 outside of regions
  const MgranStep* steps;  // [count]
  std::int64_t count;
};

// Whose images: `inputs` for each person, under the regions first, first + 1, ...; region 0 is everything that is not
// background, or the whole crop of a person whose map is empty.
struct MgranPeople {
  const std::uint8_t* crops;  // [people, height, width, 3]; not read by the plan
  const std::uint8_t* map;    // [people, height, width]
  std::int64_t people;
  std::int32_t height, width;
  std::int32_t first, inputs;
};

struct MgranPlan {
  std::int32_t* windows;  // [count + 1, people * inputs, 4] top, left, height, width
  std::int64_t* offsets;  // [count + 1] of each layer in the workspace; the last layer is not in it
  std::int64_t bytes;     // of the workspace
  std::int64_t multiply_adds;
};

// Fills the plan. `whole`: windows are whole grids. `keep`: every layer has a place of its own in the workspace.
int mgran_network_plan_cpu(const MgranNetwork* network, const MgranPeople* people, std::int32_t whole,
                           std::int32_t keep, MgranPlan* plan);

// Runs it. `out` [people * inputs, height, width, channels] of the last layer is written at its windows.
int mgran_network_cpu(const MgranNetwork* network, const MgranPeople* people, const MgranPlan* plan, void* workspace,
                      void* out, int threads);
}
