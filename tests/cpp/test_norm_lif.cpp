#include "esl/norm_lif.h"
#include "random.h"
#include "testing.h"

using namespace esl;

namespace {

struct Case {
  PanelShape shape;
  bool hard;
  Surrogate surrogate;
  bool detach;
  int64_t pool;
  int currents, planes;
  bool batch_stats;
  int threads;
};

// Two norms, currents of all lanes, and what the kernels make of them.
struct Problem {
  const Case& k;
  const PanelShape& s = k.shape;
  const int64_t panel = s.lanes.groups() * s.units() * 64, words = s.lanes.groups() * s.units(), C = s.channels;
  const float width = 1.5f, scale = 0.25f;
  const LifNeuron neuron{0.7f, 0.8f, k.hard, 0.25f};
  Random random{static_cast<uint64_t>(s.lanes.T * 100 + s.lanes.B + s.channels)};
  std::vector<float> current[2], mean[2], rstd[2], a[2], b[2];
  std::vector<uint64_t> residual, spikes;
  std::vector<float> grad;

  explicit Problem(const Case& k) : k(k), residual(size(k.planes * words)), spikes(size(words), ~0ull) {
    for (int i = 0; i < 2; ++i) {
      current[i] = lanes_of(s, poison(1)[0]);
      mean[i] = random.reals(C), rstd[i] = random.reals(C), a[i] = random.reals(C), b[i] = random.reals(C);
      for (float& r : rstd[i]) r += 1.5f;
      for (size_t c = 0; c < a[i].size(); ++c) a[i][c] = (a[i][c] + 2.f) * rstd[i][c];  // gamma is a / rstd
    }
    for (int64_t i = 0; i < k.planes * words; ++i)
      residual[size(i)] = random.next() & s.lanes.valid(i % words / s.units());
    grad = lanes_of({s.lanes, s.height / k.pool, s.width / k.pool, C}, 0.f);
  }

  static size_t size(int64_t n) { return static_cast<size_t>(n); }
  size_t at(int64_t unit, int64_t lane) const { return size((lane / 64 * s.units() + unit) * 64 + lane % 64); }
  std::vector<float> lanes_of(const PanelShape& shape, float padding) {
    std::vector<float> x(size(shape.lanes.groups() * shape.units() * 64), padding);
    for (size_t i = 0; i < x.size(); ++i) {
      const auto lane = static_cast<int64_t>(i / 64) / shape.units() * 64 + static_cast<int64_t>(i % 64);
      if (lane < shape.lanes.count() && shape.lanes.row(lane) >= 0) x[i] = 2 * random.real();
    }
    return x;
  }
  NormLifInput input() const {
    NormLifInput in{s, neuron, {}, residual.data(), k.planes, scale, k.threads};
    for (int i = 0; i < k.currents; ++i) in.current[i] = {current[i].data(), a[i].data(), b[i].data()};
    return in;
  }
  static bool bit(const std::vector<uint64_t>& w, size_t at) { return w[at / 64] >> (at % 64) & 1; }
  double total(int64_t unit, int64_t lane) const {
    const size_t place = at(unit, lane), c = size(unit % C);
    double x = 0;
    for (int i = 0; i < k.currents; ++i) x += static_cast<double>(a[i][c]) * current[i][place] + b[i][c];
    for (int p = 0; p < k.planes; ++p) x += bit(residual, size(p * words * 64) + place) ? scale * (1 << p) : 0.;
    return x;
  }
  double after(double u, bool spike) const { return !spike ? u : k.hard ? 0.25 : u - neuron.v_threshold; }
};

double derivative(Surrogate kind, double d, double width) {
  const double away = std::abs(d), pi = 3.14159265358979323846;
  if (kind == Surrogate::triangle) return std::max(0.0, 1 - away / width) / width;
  if (kind == Surrogate::rectangle) return away < width / 2 ? 1 / width : 0;
  if (kind == Surrogate::atan) return 1 / (width * (1 + std::pow(pi * d / width, 2)));
  const double sigmoid = 1 / (1 + std::exp(-4 * d / width));
  return 4 / width * sigmoid * (1 - sigmoid);
}

// Gradient g of the sum of currents, in double, from the spikes that the forward kernel wrote.
std::vector<double> sum_gradient(const Problem& p, double* grad_tau) {
  const PanelShape& s = p.s;
  const int64_t T = s.lanes.T, padded = s.lanes.padded(), pool = p.k.pool;
  std::vector<double> g(p.size(p.panel)), u(p.size(T)), v(p.size(T + 1));
  for (int64_t unit = 0; unit < s.units(); ++unit)
    for (int64_t sample = 0; sample < s.lanes.B; ++sample) {
      v[0] = p.k.hard ? 0.25 : 0;
      for (int64_t t = 0; t < T; ++t) {
        const int64_t lane = t * padded + sample;
        u[p.size(t)] = static_cast<double>(p.neuron.tau) * v[p.size(t)] + p.total(unit, lane);
        const bool spike = p.bit(p.spikes, p.at(unit, lane));
        if (std::abs(u[p.size(t)] - p.neuron.v_threshold) > 1e-4)
          ESL_EXPECT(spike == (u[p.size(t)] > p.neuron.v_threshold));
        v[p.size(t + 1)] = p.after(u[p.size(t)], spike);
      }
      const int64_t y = unit / p.C / s.width / pool, x = unit / p.C % s.width / pool;
      const bool dropped = y >= s.height / pool || x >= s.width / pool;
      const int64_t grad_unit = (y * (s.width / pool) + x) * p.C + unit % p.C;
      const int64_t grad_units = (s.height / pool) * (s.width / pool) * p.C;
      double gv = 0;
      for (int64_t t = T - 1; t >= 0; --t) {
        const int64_t lane = t * padded + sample;
        const double potential = u[p.size(t)];
        const bool spike = p.bit(p.spikes, p.at(unit, lane));
        double gs = dropped ? 0 : p.grad[p.size((lane / 64 * grad_units + grad_unit) * 64 + lane % 64)];
        gs /= static_cast<double>(pool * pool);
        if (!p.k.detach) gs += gv * (p.k.hard ? 0.25 - potential : -static_cast<double>(p.neuron.v_threshold));
        const double through = p.k.hard && spike ? 0 : gv;
        g[p.at(unit, lane)] =
            gs * derivative(p.k.surrogate, potential - static_cast<double>(p.neuron.v_threshold), p.width) + through;
        *grad_tau += g[p.at(unit, lane)] * v[p.size(t)];
        gv = static_cast<double>(p.neuron.tau) * g[p.at(unit, lane)];
      }
    }
  return g;
}

void check(const Case& k) {
  Problem p(k);
  const PanelShape& s = k.shape;
  ESL_DISPATCH(norm_lif_forward, (NormLifForward{p.input(), p.spikes.data()}));
  for (int64_t i = 0; i < p.words; ++i) ESL_EXPECT((p.spikes[p.size(i)] & ~s.lanes.valid(i / s.units())) == 0);

  std::vector<float> grad_current[2], grad_gamma[2], grad_beta[2], grad_residual = poison(p.panel);
  double grad_tau = -1;
  NormLifBackward call{p.input(), k.surrogate,          p.width,   k.detach, p.spikes.data(), p.grad.data(), k.pool,
                       {},        grad_residual.data(), &grad_tau, nullptr};
  for (int i = 0; i < k.currents; ++i) {
    grad_current[i] = p.current[i], grad_gamma[i] = poison(p.C), grad_beta[i] = poison(p.C);
    call.in.current[i].panel = grad_current[i].data();  // in place
    call.norm[i] = {p.mean[i].data(),       p.rstd[i].data(),     k.batch_stats,
                    grad_current[i].data(), grad_gamma[i].data(), grad_beta[i].data()};
  }
  std::vector<double> scratch(p.size(ESL_DISPATCH(norm_lif_backward_scratch, call)),
                              std::numeric_limits<double>::quiet_NaN());
  call.scratch = scratch.data();
  ESL_DISPATCH(norm_lif_backward, call);

  double tau = 0;
  const std::vector<double> g = sum_gradient(p, &tau);
  const double n = static_cast<double>(s.lanes.rows() * s.pixels());
  ESL_EXPECT(close(grad_tau, tau, 1e-3));
  for (size_t i = 0; i < g.size(); ++i) ESL_EXPECT(close(grad_residual[i], g[i], 1e-4));
  for (int i = 0; i < k.currents; ++i)
    for (int64_t c = 0; c < p.C; ++c) {
      const double rstd = p.rstd[i][p.size(c)], mean = p.mean[i][p.size(c)], a = p.a[i][p.size(c)];
      double sum = 0, product = 0;
      const auto each = [&](auto f) {
        for (int64_t pixel = 0; pixel < s.pixels(); ++pixel)
          for (int64_t lane = 0; lane < s.lanes.groups() * 64; ++lane) {
            const size_t at = p.at(pixel * p.C + c, lane);
            const bool valid = s.lanes.valid(lane / 64) >> (lane % 64) & 1;
            f(at, valid, valid ? (p.current[i][at] - mean) * rstd : 0.);
          }
      };
      each([&](size_t at, bool, double x_hat) { sum += g[at], product += g[at] * x_hat; });
      ESL_EXPECT(close(grad_beta[i][p.size(c)], sum, 1e-3));
      ESL_EXPECT(close(grad_gamma[i][p.size(c)], product, 1e-3));
      each([&](size_t at, bool valid, double x_hat) {
        const double expected = k.batch_stats ? a * (g[at] - sum / n - x_hat * product / n) : a * g[at];
        ESL_EXPECT(valid ? close(grad_current[i][at], expected, 1e-3) : grad_current[i][at] == 0.f);
      });
    }
}

}  // namespace

void run() {
  for (const Surrogate kind : {Surrogate::triangle, Surrogate::rectangle, Surrogate::sigmoid, Surrogate::atan})
    for (const bool hard : {false, true})
      for (const bool detach : {false, true})
        for (const int64_t B : {5, 12}) check({{{3, B}, 2, 3, 3}, hard, kind, detach, 1, 1, 0, true, 2});
  for (const int currents : {1, 2})
    for (const int planes : {0, 1, 3})
      for (const bool batch_stats : {false, true})
        for (const int64_t pool : {1, 2})
          check({{{2, 20}, 5, 4, 5}, true, Surrogate::triangle, false, pool, currents, planes, batch_stats, 3});
  for (const int64_t T : {1, 10, 40})
    for (const int64_t B : {1, 16, 33}) check({{{T, B}, 1, 1, 2}, true, Surrogate::atan, false, 1, 1, 0, true, 2});
  check({{{4, 32}, 6, 7, 130}, false, Surrogate::triangle, false, 1, 2, 1, true, 3});  // several tiles of pixels
  check({{{2, 12}, 1, 2, 130}, false, Surrogate::triangle, false, 1, 2, 1, true, 3});  // and of channels
  check({{{3, 0}, 2, 2, 3}, true, Surrogate::triangle, false, 1, 1, 0, true, 2});
}
