// Op lif: leaky integrate and fire over T steps, and its surrogate gradient.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/stream.h"

namespace esl {

enum class Surrogate { triangle, rectangle, sigmoid, atan };

struct LifNeuron {
  float tau, v_threshold;
  bool hard_reset;
  float v_reset;
};

struct LifForward {
  LifNeuron neuron;
  int64_t T, M;
  const float* x;  // [T, M], rows x_stride apart (0: one current for all steps)
  int64_t x_stride;
  const float* v;  // [M], v_stride apart (0: one number for all neurons)
  int64_t v_stride;
  float* spikes;  // [T, M]
  float* v_last;  // [M] or null
  int threads;
};

struct LifBackward {
  LifNeuron neuron;
  Surrogate surrogate;
  float width;
  bool detach_reset;
  int64_t T, M;
  const float* x;
  int64_t x_stride;
  const float* v;
  int64_t v_stride;
  const float* grad_spikes;  // [T, M]
  const float* grad_v_last;  // [M] or null
  float* grad_x;             // [T, M]
  float* grad_v;             // [M] or null
  double* grad_tau;          // or null
  float* scratch;            // lif_backward_scratch() floats
  int threads;
};

ESL_DECLARE_CPU(void lif_forward(const LifForward& p))
ESL_DECLARE_CPU(int64_t lif_backward_scratch(const LifBackward& p))
ESL_DECLARE_CPU(void lif_backward(const LifBackward& p))

// On CUDA tau is read where it lives, and its gradient stays in parts: grad_tau [M] or null.
void launch_lif_forward(const LifForward& p, const float* tau, Stream stream);
void launch_lif_backward(const LifBackward& p, const float* tau, float* grad_tau, Stream stream);

}  // namespace esl
