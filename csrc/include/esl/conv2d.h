// Op conv2d: block-sparse 2-d convolution of spike words or float panels, and its gradients. Results are panels.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/lanes.h"
#include "esl/linear.h"
#include "esl/stream.h"

namespace esl {

// Input pixel of output pixel (y, x) at tap (i, j): (y * sh - ph + i * dh, x * sw - pw + j * dw); outside it is zero.
struct ConvShape {
  int64_t groups;
  int64_t H, W, Ho, Wo;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
};

// The weight: rows = output channels, cols = kh * kw * (input channels of one group), column block = tap * blocks of a
// tap + block; no block straddles a group or a tap. The column index of a block is the same in all groups.

struct Conv2dForward {
  BlockSparse w;
  ConvShape shape;
  Lanes lanes;
  const float* bias;      // [rows] or null
  const uint64_t* words;  // [planes, groups of lanes, H, W, channels], or null: x is float
  int planes;
  float scale;
  const float* x;      // panels [groups of lanes, H, W, channels, 64]; padding lanes are finite
  float* y;            // panels [groups of lanes, Ho, Wo, rows, 64]; its padding lanes are undefined
  double* stats;       // [2, rows] or null: mean and biased variance of y over pixels and lanes without padding
  SpikeKernel kernel;  // automatic, masked, tables
  void* scratch;       // conv2d_forward_scratch() bytes, 64-byte aligned
  int threads;
};

struct Conv2dBackward {
  BlockSparse w;
  ConvShape shape;
  Lanes lanes;
  const float* grad;      // of y; padding lanes are zero
  const uint64_t* words;  // as in forward
  int planes;
  float scale;
  const float* x;
  float* grad_x;       // panels of x or null; padding lanes become zero
  float* grad_values;  // [nnzb, bm, bn] or null; the overhang becomes zero
  float* grad_bias;    // [rows] or null
  void* scratch;       // conv2d_backward_scratch() bytes
  int threads;
};

ESL_DECLARE_CPU(int64_t conv2d_forward_scratch(const Conv2dForward& p))
ESL_DECLARE_CPU(void conv2d_forward(const Conv2dForward& p))
ESL_DECLARE_CPU(int64_t conv2d_backward_scratch(const Conv2dBackward& p))
ESL_DECLARE_CPU(void conv2d_backward(const Conv2dBackward& p))

// The three products on CUDA. Panels that come from float maps of the user are float32, currents and gradients are of
// any dtype; values and sums are float32. All panels are aligned to 16 bytes.
struct Conv2dCuda {
  BlockSparse w;
  int64_t nnzb;
  ConvShape shape;
  Lanes lanes;
  const uint64_t* words;  // or null: x is float
  int planes;
  float scale;
  const float* x;
  Dtype dtype;  // of y and of the gradients
};

void launch_conv2d_forward(const Conv2dCuda& p, const float* bias, void* y, Stream stream);
void launch_conv2d_grad_input(const Conv2dCuda& p, const void* grad, void* grad_x, Stream stream);
// Sums over lanes and pixels are made in parts, whose number does not depend on the GPU, and added in order. `parts`
// is null and grad_values is written at once where there is only one; else it holds that many times the values.
int64_t conv2d_grad_values_parts(const Conv2dCuda& p);
void launch_conv2d_grad_values(const Conv2dCuda& p, const void* grad, float* grad_values, float* parts, Stream stream);

}  // namespace esl
