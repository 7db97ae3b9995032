// Op norm_lif: normalise currents, add a second current and a residual, leaky integrate and fire, spikes as bits; and
// its gradient.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/lanes.h"
#include "esl/lif.h"
#include "esl/stream.h"

namespace esl {

// a * panel + b per channel.
struct AffineCurrent {
  const float* panel;  // or null: there is no such current
  const float* a;      // [channels], b too; both null: the current as it is
  const float* b;
};

struct NormLifInput {
  PanelShape shape;
  LifNeuron neuron;
  AffineCurrent current[2];
  const uint64_t* residual;  // [planes, groups, height, width, channels]: residual_scale * sum 2^p bit_p
  int planes;                // 0: no residual
  float residual_scale;
  int threads;
};

struct NormLifForward {
  NormLifInput in;
  uint64_t* words;  // spikes
};

// The norm of a current, and its gradients. Null: not asked for.
struct NormGradient {
  const float* mean;  // [channels], rstd too; both null: no norm
  const float* rstd;
  bool batch_stats;     // mean and rstd depend on the current
  float* grad_current;  // panel; may be that of the current itself
  float* grad_gamma;    // [channels]
  float* grad_beta;     // [channels]
};

struct NormLifBackward {
  NormLifInput in;
  Surrogate surrogate;
  float width;
  bool detach_reset;
  const uint64_t* words;
  const float* grad;  // of the spikes after average pooling: [groups, height / pool, width / pool, channels, 64]
  int64_t pool;
  NormGradient norm[2];
  float* grad_residual;  // panel or null
  double* grad_tau;      // or null
  double* scratch;       // norm_lif_backward_scratch() doubles
};

ESL_DECLARE_CPU(void norm_lif_forward(const NormLifForward& p))
ESL_DECLARE_CPU(int64_t norm_lif_backward_scratch(const NormLifBackward& p))
ESL_DECLARE_CPU(void norm_lif_backward(const NormLifBackward& p))

// On CUDA, in parts, with tau read where it lives. Backward first makes g, the gradient of the sum of currents, a panel
// whose padding lanes are zero, and sums [4, sites] of each site (unit and 8 samples): of g, of g * (current - mean) of
// both norms, of the gradient of tau. Then `spread` writes a * (g - mean_g - (current - mean) * slope) over a current,
// with coefficients [4, channels] in this order.
int64_t norm_lif_sites(const PanelShape& shape);
void launch_norm_lif_forward(const NormLifForward& p, const float* tau, Stream stream);
void launch_norm_lif_backward(const NormLifBackward& p, const float* tau, float* g, float* sums, Stream stream);
void launch_norm_lif_spread(const PanelShape& shape, const float* g, float* current, const float* coefficients,
                            Stream stream);

}  // namespace esl
