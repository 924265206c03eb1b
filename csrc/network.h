// Launch ABI of `network`: crops and region map -> the features of a whole trunk, computed where they are wanted.
// Definition: mgran_fast/reference/network.py.
//
// An aligned input is 0 away from its region, so every layer away from the region is what it is for an empty image: the
// background, which depends on the weights alone. Where no other region can be felt, a layer is what it is for the
// input of the whole person. And only the cells that are pooled are wanted. Of every layer and image just those cells
// are computed that its region and another one can influence and that what is wanted depends on.
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

// The most regions that a network may have inputs for.
enum { MGRAN_NETWORK_REGIONS = 15 };

// Tables of layer after layer, of each [people * inputs, height, width]: as many as all grids have cells.
struct MgranPlan {
  std::int32_t* index;    // which of the layer's cells, or -1, as in conv.h; the last layer has none
  std::int32_t* places;   // [counts] of the cells that are computed, as in conv.h; the rest is not written
  std::int64_t* counts;   // [count + 1] of each layer
  std::int64_t* offsets;  // [count + 1] of each layer in the workspace; the last layer is not in it
  std::int64_t bytes;     // of the workspace
  std::int64_t multiply_adds;
};

// Fills the plan. `whole`: all cells of all images. `keep`: every layer has a place of its own in the workspace.
int mgran_network_plan_cpu(const MgranNetwork* network, const MgranPeople* people, std::int32_t whole,
                           std::int32_t keep, MgranPlan* plan, int threads);

// Runs it. `out` [people * inputs, height, width, channels] of the last layer is written at its places.
int mgran_network_cpu(const MgranNetwork* network, const MgranPeople* people, const MgranPlan* plan, void* workspace,
                      void* out, int threads);
}
