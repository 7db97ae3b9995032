// Op temporal: spike times of neurons that fire once, integrating synaptic currents exp(-t) without leak, from those of
// their inputs; solved exactly, input by input in the order of their times. z = exp(time); infinity: no spike.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/linear.h"
#include "esl/stream.h"

namespace esl {

struct TemporalForward {
  BlockSparse w;
  int64_t samples;
  const float* z;   // [samples, cols], above 0
  float* z_out;     // [samples, rows]
  float* slope;     // [samples, rows]: sum of the causal weights - 1; 0 where there is no spike
  int64_t* visits;  // or null: inputs visited, of all samples
  void* scratch;    // temporal_forward_scratch() bytes, 64-byte aligned
  int threads;
};

struct TemporalBackward {
  BlockSparse w;
  int64_t samples;
  const float* grad;  // of z_out
  const float* z;
  const float* z_out;
  const float* slope;
  float* grad_z;       // [samples, cols] or null
  float* grad_values;  // [nnzb, bm, bn] or null; the overhang becomes zero
  void* scratch;       // temporal_backward_scratch() bytes
  int threads;
};

ESL_DECLARE_CPU(int64_t temporal_forward_scratch(const TemporalForward& p))
// Returns the number of z that are no times: NaN, zero or below; the results are undefined then.
ESL_DECLARE_CPU(int64_t temporal_forward(const TemporalForward& p))
ESL_DECLARE_CPU(int64_t temporal_backward_scratch(const TemporalBackward& p))
ESL_DECLARE_CPU(void temporal_backward(const TemporalBackward& p))

// On CUDA each sample's z come in ascending order, and `order` [samples, cols] says which input each is of. Nobody
// looks for what is no time; visits are not counted.
void launch_temporal_forward(const TemporalForward& p, const int64_t* order, Stream stream);
void launch_temporal_backward(const TemporalBackward& p, int64_t nnzb, Stream stream);

}  // namespace esl
