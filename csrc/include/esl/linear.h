// Op linear: block-sparse y = x W^T + b and its gradients, on spike words or float panels.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/lanes.h"

namespace esl {

// A block-sparse weight [rows, cols]; see esl_sparse/topology.py. Pointers of a direction that is not used may be null.
struct BlockSparse {
  int64_t rows, cols, bm, bn;
  const int32_t *crow, *col;               // by row blocks
  const int32_t *ccol, *row_t, *offset_t;  // by column blocks
  const float* values;                     // [nnzb, bm, bn]
};

// Which kernel multiplies spikes; `automatic` takes the fastest known one.
enum class SpikeKernel { automatic, masked, tables, events };

struct LinearForward {
  BlockSparse w;
  Lanes lanes;
  const float* bias;      // [rows] or null
  const uint64_t* words;  // [planes, groups, cols], or null: x is float
  int planes;
  float scale;
  Activation x;
  Activation y;  // its padding lanes are undefined
  SpikeKernel kernel;
  void* scratch;  // linear_forward_scratch() bytes, 64-byte aligned
  int threads;
};

struct LinearBackward {
  BlockSparse w;
  Lanes lanes;
  Activation grad;        // of y; padding lanes of a panel are zero
  const uint64_t* words;  // as in forward
  int planes;
  float scale;
  Activation x;
  Activation grad_x;   // data null: not asked for; padding lanes of a panel become zero
  float* grad_values;  // [nnzb, bm, bn] or null; the overhang becomes zero
  float* grad_bias;    // [rows] or null
  void* scratch;       // linear_backward_scratch() bytes
  int threads;
};

ESL_DECLARE_CPU(int64_t linear_forward_scratch(const LinearForward& p))
ESL_DECLARE_CPU(void linear_forward(const LinearForward& p))
ESL_DECLARE_CPU(int64_t linear_backward_scratch(const LinearBackward& p))
ESL_DECLARE_CPU(void linear_backward(const LinearBackward& p))

}  // namespace esl
