#include "esl/lif.h"
#include "random.h"
#include "testing.h"

using namespace esl;

namespace {

double derivative(Surrogate kind, double d, double width) {
  const double away = std::abs(d), pi = 3.14159265358979323846;
  switch (kind) {
    case Surrogate::triangle:
      return std::max(0.0, 1 - away / width) / width;
    case Surrogate::rectangle:
      return away < width / 2 ? 1 / width : 0;
    case Surrogate::sigmoid: {
      const double s = 1 / (1 + std::exp(-4 * d / width));
      return 4 / width * s * (1 - s);
    }
    default:
      return 1 / (width * (1 + std::pow(pi * d / width, 2)));
  }
}

void check(int64_t T, int64_t M, Surrogate kind, bool hard, bool detach) {
  Random random{static_cast<uint64_t>(T * 100 + M)};
  const LifNeuron neuron{0.7f, 1.f, hard, 0.25f};
  const float width = 1.5f;
  std::vector<float> x = random.reals(T * M), v = random.reals(M), grad = random.reals(T * M), last = random.reals(M);
  for (float& value : x) value *= 2.5f;
  std::vector<float> spikes = poison(T * M), v_last = poison(M), grad_x = poison(T * M), grad_v = poison(M);
  double grad_tau = 0;
  ESL_DISPATCH(lif_forward, (LifForward{neuron, T, M, x.data(), M, v.data(), 1, spikes.data(), v_last.data(), 2}));
  LifBackward b{neuron,      kind,        width,         detach,        T,         M,       x.data(), M, v.data(), 1,
                grad.data(), last.data(), grad_x.data(), grad_v.data(), &grad_tau, nullptr, 2};
  std::vector<float> scratch = poison(ESL_DISPATCH(lif_backward_scratch, b));
  b.scratch = scratch.data();
  ESL_DISPATCH(lif_backward, b);

  double tau_sum = 0;
  for (int64_t m = 0; m < M; ++m) {
    std::vector<double> u(static_cast<size_t>(T)), before(static_cast<size_t>(T));
    double potential = v[static_cast<size_t>(m)];
    for (int64_t t = 0; t < T; ++t) {
      const auto at = static_cast<size_t>(t * M + m), step = static_cast<size_t>(t);
      before[step] = potential;
      u[step] = static_cast<double>(neuron.tau) * potential + x[at];
      const bool spike = u[step] > 1;
      ESL_EXPECT(spikes[at] == (spike ? 1.f : 0.f));
      potential = !spike ? u[step] : hard ? 0.25 : u[step] - 1;
    }
    ESL_EXPECT(close(v_last[static_cast<size_t>(m)], potential, 1e-5));
    double gv = last[static_cast<size_t>(m)];
    for (int64_t t = T - 1; t >= 0; --t) {
      const auto at = static_cast<size_t>(t * M + m), step = static_cast<size_t>(t);
      const bool spike = u[step] > 1;
      const double through_reset = detach ? 0 : gv * (hard ? 0.25 - u[step] : -1.0);
      const double gu = (grad[at] + through_reset) * derivative(kind, u[step] - 1, width) + (hard && spike ? 0 : gv);
      ESL_EXPECT(close(grad_x[at], gu, 1e-4));
      tau_sum += gu * before[step];
      gv = static_cast<double>(neuron.tau) * gu;
    }
    ESL_EXPECT(close(grad_v[static_cast<size_t>(m)], gv, 1e-4));
  }
  ESL_EXPECT(close(grad_tau, tau_sum, 1e-3));
}

}  // namespace

void run() {
  for (const Surrogate kind : {Surrogate::triangle, Surrogate::rectangle, Surrogate::sigmoid, Surrogate::atan})
    for (const bool hard : {false, true})
      for (const bool detach : {false, true}) {
        check(4, 37, kind, hard, detach);
        check(1, 1025, kind, hard, detach);
        check(3, 20000, kind, hard, detach);
      }
}
