// Op lif. A thread is a neuron through all steps: neighbours read neighbours. Backward keeps the potentials where the
// gradients of the currents will stand, and needs no memory of its own.
#include "esl/lif.h"
#include "launch.h"
#include "neuron.h"

namespace esl {

namespace cuda {
namespace {

struct Forward {
  static constexpr int kThreads = 256, kPhases = 1;
  using Shared = Empty;
  LifForward p;
  Neuron neuron;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t m = static_cast<int64_t>(block) * kThreads + thread;
    if (m >= p.M) return;
    const float tau = *neuron.tau;
    float v = p.v[m * p.v_stride];
    for (int64_t t = 0; t < p.T; ++t) {
      const float u = plus(times(tau, v), p.x[t * p.x_stride + m]);
      const bool spike = u > neuron.v_threshold;
      p.spikes[t * p.M + m] = spike ? 1.f : 0.f;
      v = neuron.after(u, spike);
    }
    if (p.v_last) p.v_last[m] = v;
  }
};

struct BackwardPass {
  static constexpr int kThreads = 256, kPhases = 1;
  using Shared = Empty;
  LifBackward p;
  float* grad_tau;  // [M] or null
  Backward step;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t m = static_cast<int64_t>(block) * kThreads + thread;
    if (m >= p.M) return;
    const Neuron& neuron = step.neuron;
    const float tau = *neuron.tau, start = p.v[m * p.v_stride];
    float v = start;
    for (int64_t t = 0; t < p.T; ++t) {
      const float u = plus(times(tau, v), p.x[t * p.x_stride + m]);
      p.grad_x[t * p.M + m] = u;
      v = neuron.after(u, u > neuron.v_threshold);
    }
    float grad_v = p.grad_v_last ? p.grad_v_last[m] : 0.f, sum = 0.f;
    for (int64_t t = p.T - 1; t >= 0; --t) {
      const float u = p.grad_x[t * p.M + m];
      const float grad = step(u, u > neuron.v_threshold, p.grad_spikes[t * p.M + m], grad_v);
      const float before = t ? p.grad_x[(t - 1) * p.M + m] : 0.f;
      sum += grad * (t ? neuron.after(before, before > neuron.v_threshold) : start);
      p.grad_x[t * p.M + m] = grad;
      grad_v = tau * grad;
    }
    if (p.grad_v) p.grad_v[m] = grad_v;
    if (grad_tau) grad_tau[m] = sum;
  }
};

}  // namespace
}  // namespace cuda

using namespace cuda;

void launch_lif_forward(const LifForward& p, const float* tau, Stream stream) {
  launch("lif", Forward{p, Neuron(p.neuron, tau)}, ceil_div(p.M, Forward::kThreads), stream);
}

void launch_lif_backward(const LifBackward& p, const float* tau, float* grad_tau, Stream stream) {
  const BackwardPass body{p, grad_tau, {Neuron(p.neuron, tau), {p.surrogate, p.width}, p.detach_reset}};
  launch("lif_backward", body, ceil_div(p.M, body.kThreads), stream);
}

}  // namespace esl
