// Op norm_lif. A thread takes 8 samples of a channel at a pixel through all steps: 8 lanes are one byte of a word and
// belong to one step, so that it reads and writes spikes without the help of others.
#include "element.h"
#include "esl/norm_lif.h"
#include "launch.h"
#include "neuron.h"

namespace esl {

namespace cuda {
namespace {

constexpr int kThreads = 128, kSamples = 8;

// What a thread works on, and where its lanes stand.
struct Site {
  int64_t units, unit;
  int c, b, padded;
  int T, end;  // steps; with those of the lanes that fill up the last group

  ESL_INLINE Site(const PanelShape& s, int64_t index)
      : units(s.units()), padded(static_cast<int>(s.lanes.padded())), T(static_cast<int>(s.lanes.T)) {
    const int bytes = padded / kSamples;
    unit = index / bytes;
    b = static_cast<int>(index % bytes) * kSamples;
    c = static_cast<int>(unit % s.channels);
    end = static_cast<int>((s.lanes.groups() * 64 - b + padded - 1) / padded);
  }
  // Of the first lane, in a panel; the same over 8 in the bytes of words.
  ESL_INLINE int64_t at(int t) const {
    const int64_t lane = static_cast<int64_t>(t) * padded + b;
    return ((lane >> 6) * units + unit) * 64 + (lane & 63);
  }
};

ESL_INLINE void load_samples(const float* p, float (&x)[kSamples]) {
#pragma unroll
  for (int i = 0; i < kSamples; i += 4) {
    const Vector<float, 4> v = load<4>(p + i);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[i + k] = v.x[k];
  }
}

ESL_INLINE void store_samples(float* p, const float (&x)[kSamples]) {
#pragma unroll
  for (int i = 0; i < kSamples; i += 4)
    *reinterpret_cast<Vector<float, 4>*>(p + i) = {{x[i], x[i + 1], x[i + 2], x[i + 3]}};
}

struct Input {
  NormLifInput in;

  // What neurons integrate at one step.
  ESL_INLINE void total(const Site& site, int64_t at, float (&x)[kSamples]) const {
    load_samples(in.current[0].panel + at, x);
    normalise(in.current[0], site.c, x);
    if (in.current[1].panel) {
      float y[kSamples];
      load_samples(in.current[1].panel + at, y);
      normalise(in.current[1], site.c, y);
#pragma unroll
      for (int i = 0; i < kSamples; ++i) x[i] = plus(x[i], y[i]);
    }
    if (!in.planes) return;
    const auto* const bytes = reinterpret_cast<const uint8_t*>(in.residual);
    const int64_t plane = in.shape.lanes.groups() * site.units * 8;
    int level[kSamples] = {};
    for (int p = 0; p < in.planes; ++p) {
      const int byte = bytes[p * plane + at / 8];
#pragma unroll
      for (int i = 0; i < kSamples; ++i) level[i] |= (byte >> i & 1) << p;
    }
#pragma unroll
    for (int i = 0; i < kSamples; ++i) x[i] = plus(x[i], times(in.residual_scale, static_cast<float>(level[i])));
  }
  ESL_INLINE static void normalise(const AffineCurrent& current, int c, float (&x)[kSamples]) {
    if (!current.a) return;
    const float a = current.a[c], b = current.b[c];
#pragma unroll
    for (int i = 0; i < kSamples; ++i) x[i] = plus(times(a, x[i]), b);
  }
};

int64_t site_count(const PanelShape& s) {
  int32("norm_lif", "lanes", s.lanes.count());
  return s.units() * (s.lanes.padded() / kSamples);
}

struct Forward {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  Input input;
  Neuron neuron;
  uint64_t* words;
  int64_t sites;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t index = static_cast<int64_t>(block) * kThreads + thread;
    if (index >= sites) return;
    const PanelShape& s = input.in.shape;
    const Site site(s, index);
    const float tau = *neuron.tau;
    float v[kSamples], x[kSamples];
#pragma unroll
    for (int i = 0; i < kSamples; ++i) v[i] = neuron.start();
    auto* const bytes = reinterpret_cast<uint8_t*>(words);
    for (int t = 0; t < site.T; ++t) {
      const int64_t at = site.at(t);
      input.total(site, at, x);
      unsigned spikes = 0;
#pragma unroll
      for (int i = 0; i < kSamples; ++i) {
        const float u = plus(times(tau, v[i]), x[i]);
        const bool spike = u > neuron.v_threshold && site.b + i < s.lanes.B;
        spikes |= static_cast<unsigned>(spike) << i;
        v[i] = neuron.after(u, spike);
      }
      bytes[at / 8] = static_cast<uint8_t>(spikes);
    }
    for (int t = site.T; t < site.end; ++t) bytes[site.at(t) / 8] = 0;
  }
};

// First the potentials go into the panel of g, then, back through time, g over them. Each thread leaves its sums: of g,
// of g * (current - mean) for both currents, of the gradient of tau.
struct BackwardPass {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  Input input;
  Backward step;
  const uint64_t* words;
  const float* grad;
  int pool;
  const float* mean[2];
  float* g;
  float* sums;  // [4, sites]
  int64_t sites;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t index = static_cast<int64_t>(block) * kThreads + thread;
    if (index >= sites) return;
    const NormLifInput& in = input.in;
    const PanelShape& s = in.shape;
    const Site site(s, index);
    const Neuron& neuron = step.neuron;
    const float tau = *neuron.tau;
    const auto* const bytes = reinterpret_cast<const uint8_t*>(words);
    float x[kSamples], v[kSamples];
#pragma unroll
    for (int i = 0; i < kSamples; ++i) v[i] = neuron.start();
    for (int t = 0; t < site.T; ++t) {
      const int64_t at = site.at(t);
      const int spikes = bytes[at / 8];
      input.total(site, at, x);
#pragma unroll
      for (int i = 0; i < kSamples; ++i) {
        x[i] = plus(times(tau, v[i]), x[i]);
        v[i] = neuron.after(x[i], spikes >> i & 1);
      }
      store_samples(g + at, x);
    }
    // The pooled pixel whose gradient reaches this one; none at a border that no window covers.
    const int64_t pixel = site.unit / s.channels, h = s.height / pool, w = s.width / pool;
    const int64_t y = pixel / s.width / pool, column = pixel % s.width / pool;
    const bool covered = y < h && column < w;
    const int64_t pooled = (y * w + column) * s.channels + site.c;
    const float share = 1.f / static_cast<float>(pool * pool);
    float grad_v[kSamples] = {}, sum[4] = {};
    for (int t = site.T - 1; t >= 0; --t) {
      const int64_t at = site.at(t), lane = static_cast<int64_t>(t) * site.padded + site.b;
      const int spikes = bytes[at / 8], before = t ? bytes[site.at(t - 1) / 8] : 0;
      float u[kSamples], gs[kSamples] = {}, last[kSamples];
      load_samples(g + at, u);
      if (t) load_samples(g + site.at(t - 1), last);
      if (covered) load_samples(grad + ((lane >> 6) * h * w * s.channels + pooled) * 64 + (lane & 63), gs);
#pragma unroll
      for (int i = 0; i < kSamples; ++i) {
        const float start = t ? neuron.after(last[i], before >> i & 1) : neuron.start();
        u[i] = site.b + i < s.lanes.B ? step(u[i], spikes >> i & 1, gs[i] * share, grad_v[i]) : 0.f;
        sum[3] += site.b + i < s.lanes.B ? u[i] * start : 0.f;
        grad_v[i] = tau * u[i];
        sum[0] += u[i];
      }
      store_samples(g + at, u);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (!mean[n]) continue;
        load_samples(in.current[n].panel + at, x);
#pragma unroll
        for (int i = 0; i < kSamples; ++i)
          if (site.b + i < s.lanes.B) sum[1 + n] += u[i] * (x[i] - mean[n][site.c]);
      }
    }
    const float zero[kSamples] = {};
    for (int t = site.T; t < site.end; ++t) store_samples(g + site.at(t), zero);
#pragma unroll
    for (int n = 0; n < 4; ++n) sums[n * sites + index] = sum[n];
  }
};

// a * (g - mean_g - (current - mean) * slope) over the current.
struct Spread {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  PanelShape shape;
  const float* g;
  float* current;
  const float* coefficients;  // [4, channels]: a, mean_g, mean, slope
  int64_t sites;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t index = static_cast<int64_t>(block) * kThreads + thread;
    if (index >= sites) return;
    const Site site(shape, index);
    float k[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) k[i] = coefficients[i * shape.channels + site.c];
    const float zero[kSamples] = {};
    for (int t = site.T; t < site.end; ++t) store_samples(current + site.at(t), zero);
    for (int t = 0; t < site.T; ++t) {
      const int64_t at = site.at(t);
      float x[kSamples], from[kSamples];
      load_samples(current + at, x);
      load_samples(g + at, from);
#pragma unroll
      for (int i = 0; i < kSamples; ++i)
        x[i] = site.b + i < shape.lanes.B ? k[0] * (from[i] - k[1] - (x[i] - k[2]) * k[3]) : 0.f;
      store_samples(current + at, x);
    }
  }
};

}  // namespace
}  // namespace cuda

using namespace cuda;

int64_t norm_lif_sites(const PanelShape& shape) { return site_count(shape); }

void launch_norm_lif_forward(const NormLifForward& p, const float* tau, Stream stream) {
  const int64_t sites = site_count(p.in.shape);
  const Forward body{{p.in}, Neuron(p.in.neuron, tau), p.words, sites};
  launch("norm_lif", body, ceil_div(sites, kThreads), stream);
}

void launch_norm_lif_backward(const NormLifBackward& p, const float* tau, float* g, float* sums, Stream stream) {
  const int64_t sites = site_count(p.in.shape);
  const BackwardPass body{{p.in},
                          {Neuron(p.in.neuron, tau), {p.surrogate, p.width}, p.detach_reset},
                          p.words,
                          p.grad,
                          static_cast<int>(p.pool),
                          {p.norm[0].mean, p.norm[1].mean},
                          g,
                          sums,
                          sites};
  launch("norm_lif_backward", body, ceil_div(sites, kThreads), stream);
}

void launch_norm_lif_spread(const PanelShape& shape, const float* g, float* current, const float* coefficients,
                            Stream stream) {
  const int64_t sites = site_count(shape);
  launch("norm_lif_backward", Spread{shape, g, current, coefficients, sites}, ceil_div(sites, kThreads), stream);
}

}  // namespace esl
