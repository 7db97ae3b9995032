// Leaky integrate and fire, and the surrogate derivatives of esl_sparse/ops/lif/surrogate.py.
#pragma once

#include <cmath>

#include "esl/lif.h"
#include "launch.h"

namespace esl::cuda {

// Rounded separately, whatever the compiler would fuse: spikes are then those of the plain torch loop.
ESL_INLINE float times(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
ESL_INLINE float plus(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// tau is read where it lives: the host need not know it.
struct Neuron {
  const float* tau;
  float v_threshold, v_reset;
  bool hard;

  Neuron(const LifNeuron& n, const float* tau)
      : tau(tau), v_threshold(n.v_threshold), v_reset(n.v_reset), hard(n.hard_reset) {}
  ESL_INLINE float start() const { return hard ? v_reset : 0.f; }
  ESL_INLINE float after(float u, bool spike) const { return !spike ? u : hard ? v_reset : plus(u, -v_threshold); }
};

struct Derivative {
  Surrogate kind;
  float width;

  ESL_INLINE float operator()(float d) const {
    const float away = d < 0.f ? -d : d;
    if (kind == Surrogate::triangle) {
      const float h = 1.f - away / width;
      return (h < 0.f ? 0.f : h) / width;
    }
    if (kind == Surrogate::rectangle) return away < width / 2.f ? 1.f / width : 0.f;
    if (kind == Surrogate::sigmoid) {
      const float e = expf(-4.f * away / width);
      return 4.f / width * (e / ((1.f + e) * (1.f + e)));
    }
    const float z = 3.14159265358979f * d / width;
    return 1.f / (width * (1.f + z * z));
  }
};

// One step back: the gradient of u from those of the spike and of the potential after it, which becomes that before it
// when multiplied by tau.
struct Backward {
  Neuron neuron;
  Derivative derivative;
  bool detach_reset;

  ESL_INLINE float operator()(float u, bool spike, float grad_spike, float grad_v) const {
    if (!detach_reset) grad_spike += grad_v * (neuron.hard ? neuron.v_reset - u : -neuron.v_threshold);
    return grad_spike * derivative(u - neuron.v_threshold) + (neuron.hard && spike ? 0.f : grad_v);
  }
};

}  // namespace esl::cuda
