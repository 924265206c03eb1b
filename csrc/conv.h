// Launch ABI of `conv`: a convolution of chosen cells. Definition: mgran_fast/reference/conv.py.
//
// Of a layer only some cells are kept, each once; a table says for every cell of every image which of them it is.
// Where it is none, the image equals a background that all images share.
#pragma once
#include "abi.h"

extern "C" {

enum { MGRAN_UINT8 = 3 };

// The cells of one layer for `images` images on a grid of height x width.
struct MgranCells {
  const void* cells;          // [kept, channels]
  const std::int32_t* index;  // [images, height, width]: which of them, or -1: that of the background
  const void* background;     // [height, width, channels], or null for zeros
  std::int32_t height, width, channels;
};

// The cells that are made.
struct MgranMade {
  void* cells;                 // [count, channels]; spread: [images, height, width, channels]
  const std::int32_t* places;  // [count] (image * height + row) * width + column
  std::int64_t count;
  std::int32_t height, width, channels;
  std::int32_t spread;  // whether the cells lie at their places; one after another otherwise
};

struct MgranConvSource {
  MgranCells x;
  std::int32_t kernel, stride, padding;
};

struct MgranConv {
  MgranConvSource sources[2];  // summed: a block's last convolution and that of its shortcut are one
  std::int32_t count;          // of the sources: 1 or 2
  MgranMade out;
  std::int32_t residuals;       // 0 or 1
  MgranCells residual;          // on the grid of `out`, with its channels; of `dtype`
  const void* weights;          // [panels, groups, 32, per group], see conv_tile.h; 4 bytes a group and output channel
  const float* scale;           // uint8: [32 * panels], what an integer sum is multiplied by; null otherwise
  const float* bias;            // [32 * panels]
  const float* residual_scale;  // [32 * panels], what a residual is multiplied by; null for 1
  std::int32_t dtype;           // of the sources: MGRAN_FLOAT32, MGRAN_BFLOAT16 or MGRAN_UINT8 (weights int8)
  std::int32_t out_dtype;       // that of the sources, or MGRAN_FLOAT32
  std::int32_t relu;
};

int mgran_conv_cpu(const MgranConv* args, int threads);
}
