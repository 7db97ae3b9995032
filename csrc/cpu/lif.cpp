// Op lif. Memory-bound: forward reads 4 and writes 4 bytes per neuron and step, backward reads 8 and writes 4, so both
// together are 20 bytes where a copy is 8. Neurons go by pieces that stay in L1 while time passes.
// Products and sums are rounded separately (no contraction), so spikes equal those of the plain torch loop.
#include "esl/lif.h"

#include <cstring>

#include "esl/parallel.h"
#include "esl/surrogate.h"

namespace esl::ESL_ISA {
namespace {

constexpr int64_t kPiece = 1024;             // neurons at a time
constexpr int64_t kWorkPerThread = 1 << 14;  // neuron steps worth a second thread

inline int64_t pieces(int64_t M) { return (M + kPiece - 1) / kPiece; }

template <bool Hard>
inline float reset(float u, bool spike, const LifNeuron& n) {
  if constexpr (Hard) return spike ? n.v_reset : u;
  return u - (spike ? n.v_threshold : 0.f);
}

// Potentials of one piece before the first step.
inline void start(float* out, const float* v, int64_t stride, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = stride ? v[first + i] : *v;
}

template <bool Hard>
void forward(const LifForward& p) {
  const LifNeuron n = p.neuron;
  parallel_for(0, pieces(p.M), useful_threads(p.T * p.M, kWorkPerThread, p.threads), [&](int64_t piece) {
    const int64_t first = piece * kPiece, count = min(kPiece, p.M - first);
    float v[kPiece];
    start(v, p.v, p.v_stride, first, count);
    for (int64_t t = 0; t < p.T; ++t) {
      const float* __restrict x = p.x + t * p.x_stride + first;
      float* __restrict s = p.spikes + t * p.M + first;
      for (int64_t i = 0; i < count; ++i) {
        const float u = n.tau * v[i] + x[i];
        const bool spike = u > n.v_threshold;
        s[i] = spike ? 1.f : 0.f;
        v[i] = reset<Hard>(u, spike, n);
      }
    }
    if (p.v_last) std::memcpy(p.v_last + first, v, static_cast<size_t>(count) * 4);
  });
}

template <Surrogate kind, bool Hard, bool Detach>
void backward(const LifBackward& p) {
  const LifNeuron n = p.neuron;
  const float width = p.width, inverse = 1.f / width;
  const int threads = useful_threads(p.T * p.M, kWorkPerThread, p.threads);
  float* const sums = p.scratch + int64_t{p.threads} * (p.T + 1) * kPiece;  // of grad_tau, one a piece
  parallel_for(0, threads, threads, [&](int64_t thread) {
    float* const potentials = p.scratch + thread * (p.T + 1) * kPiece;  // u before each reset
    float* const grad_v = potentials + p.T * kPiece;
    for (int64_t piece = pieces(p.M) * thread / threads; piece < pieces(p.M) * (thread + 1) / threads; ++piece) {
      const int64_t first = piece * kPiece, count = min(kPiece, p.M - first);
      float v0[kPiece];
      start(v0, p.v, p.v_stride, first, count);
      for (int64_t t = 0; t < p.T; ++t) {
        const float* __restrict x = p.x + t * p.x_stride + first;
        const float* before = potentials + (t - 1) * kPiece;
        float* __restrict u = potentials + t * kPiece;
        if (t == 0)
          for (int64_t i = 0; i < count; ++i) u[i] = n.tau * v0[i] + x[i];
        else
          for (int64_t i = 0; i < count; ++i)
            u[i] = n.tau * reset<Hard>(before[i], before[i] > n.v_threshold, n) + x[i];
      }
      if (p.grad_v_last)
        std::memcpy(grad_v, p.grad_v_last + first, static_cast<size_t>(count) * 4);
      else
        std::memset(grad_v, 0, static_cast<size_t>(count) * 4);
      float tau_sum = 0.f;
      for (int64_t t = p.T - 1; t >= 0; --t) {
        const float* __restrict u = potentials + t * kPiece;
        const float* __restrict grad_s = p.grad_spikes + t * p.M + first;
        float* __restrict grad_x = p.grad_x + t * p.M + first;
        float* __restrict gv = grad_v;
        for (int64_t i = 0; i < count; ++i) {
          const bool spike = u[i] > n.v_threshold;
          const float dv_ds = Hard ? n.v_reset - u[i] : -n.v_threshold;
          const float grad_spike = Detach ? grad_s[i] : grad_s[i] + gv[i] * dv_ds;
          const float through = Hard && spike ? 0.f : gv[i];
          const float grad_u = grad_spike * derivative<kind>(u[i] - n.v_threshold, width, inverse) + through;
          grad_x[i] = grad_u;
          gv[i] = n.tau * grad_u;
        }
        if (!p.grad_tau) continue;
        const float* before = u - kPiece;
#pragma omp simd reduction(+ : tau_sum)
        for (int64_t i = 0; i < count; ++i)
          tau_sum += grad_x[i] * (t == 0 ? v0[i] : reset<Hard>(before[i], before[i] > n.v_threshold, n));
      }
      if (p.grad_v) std::memcpy(p.grad_v + first, grad_v, static_cast<size_t>(count) * 4);
      if (p.grad_tau) sums[piece] = tau_sum;
    }
  });
  if (p.grad_tau) {
    double total = 0;
    for (int64_t piece = 0; piece < pieces(p.M); ++piece) total += sums[piece];
    *p.grad_tau = total;
  }
}

template <Surrogate kind>
void backward_of(const LifBackward& p) {
  if (p.neuron.hard_reset)
    p.detach_reset ? backward<kind, true, true>(p) : backward<kind, true, false>(p);
  else
    p.detach_reset ? backward<kind, false, true>(p) : backward<kind, false, false>(p);
}

}  // namespace

void lif_forward(const LifForward& p) { p.neuron.hard_reset ? forward<true>(p) : forward<false>(p); }

int64_t lif_backward_scratch(const LifBackward& p) {
  return int64_t{p.threads} * (p.T + 1) * kPiece + (p.grad_tau ? pieces(p.M) : 0);
}

void lif_backward(const LifBackward& p) {
  switch (p.surrogate) {
    case Surrogate::triangle:
      return backward_of<Surrogate::triangle>(p);
    case Surrogate::rectangle:
      return backward_of<Surrogate::rectangle>(p);
    case Surrogate::sigmoid:
      return backward_of<Surrogate::sigmoid>(p);
    default:
      return backward_of<Surrogate::atan>(p);
  }
}

}  // namespace esl::ESL_ISA
