// Op panel_stats. A thread sums a channel over some of the pixels about the mean of the first panel that it meets, each
// panel in float32 and those in double; the parts are combined in order (Chan, Golub, LeVeque 1979). Nothing cancels
// however large the mean (csrc/cpu/panel_stats.cpp says why), and no result depends on the GPU.
#include "element.h"
#include "esl/panel_stats.h"
#include "launch.h"

namespace esl {

namespace cuda {
namespace {

constexpr int64_t kEnoughThreads = 1 << 16;

// Count, mean and sum of squared distances from it.
struct Moments {
  double count, mean, squares;
};

int64_t parts_of(const PanelShape& s) {
  const int64_t positions = s.lanes.groups() * s.pixels(), wanted = ceil_div(kEnoughThreads, s.channels + 1);
  return min(positions, wanted);
}

template <class T>
struct PartMoments {
  static constexpr int kThreads = 128, kPhases = 1;
  using Shared = Empty;
  PanelShape shape;
  const T* current;
  Moments* out;  // [parts, channels]
  int parts;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t index = static_cast<int64_t>(block) * kThreads + thread;
    if (index >= parts * shape.channels) return;
    const int64_t part = index / shape.channels, c = index % shape.channels;
    const int64_t pixels = shape.pixels(), positions = shape.lanes.groups() * pixels;
    const int64_t begin = positions * part / parts, end = positions * (part + 1) / parts;
    double count = 0, first = 0, second = 0;
    float centre = 0.f;
    for (int64_t at = begin; at < end; ++at) {
      const T* const panel = current + (at * shape.channels + c) * 64;
      const uint64_t valid = shape.lanes.valid(at / pixels);
      if (at == begin) {
        const Sums sums = sum(panel, valid, 0.f);
        centre = sums.first / static_cast<float>(sums.count);
      }
      const Sums sums = sum(panel, valid, centre);
      count += sums.count;
      first += sums.first;
      second += sums.second;
    }
    const double off = first / count;
    out[index] = {count, centre + off, second - off * off * count};
  }
  // Of the distances of a panel's values from `centre`, and of their squares.
  struct Sums {
    float first, second;
    int count;
  };
  ESL_INLINE static Sums sum(const T* panel, uint64_t valid, float centre) {
    float first[4] = {}, second[4] = {};
    int count = 0;
#pragma unroll 4
    for (int l = 0; l < 64; l += 4) {
      const Vector<T, 4> x = load<4>(panel + l);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (!(valid >> (l + k) & 1)) continue;
        const float d = widen(x.x[k]) - centre;
        first[k] += d;
        second[k] += d * d;
        ++count;
      }
    }
    return {(first[0] + first[1]) + (first[2] + first[3]), (second[0] + second[1]) + (second[2] + second[3]), count};
  }
};

struct Combine {
  static constexpr int kThreads = 128, kPhases = 1;
  using Shared = Empty;
  const Moments* parts;
  double* stats;
  int64_t channels;
  int count;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t c = static_cast<int64_t>(block) * kThreads + thread;
    if (c >= channels) return;
    Moments all{0, 0, 0};
    for (int part = 0; part < count; ++part) {
      const Moments other = parts[part * channels + c];
      if (other.count == 0) continue;
      const double delta = other.mean - all.mean, share = other.count / (all.count + other.count);
      all.squares += other.squares + delta * delta * all.count * share;
      all.mean += delta * share;
      all.count += other.count;
    }
    stats[c] = all.mean + 0 / all.count;  // NaN where there is no value
    stats[channels + c] = all.squares / all.count;
  }
};

}  // namespace
}  // namespace cuda

using namespace cuda;

int64_t cuda_panel_stats_scratch(const PanelShape& s) {
  return parts_of(s) * s.channels * static_cast<int64_t>(sizeof(Moments) / sizeof(double));
}

void launch_panel_stats(const PanelStats& p, Dtype dtype, Stream stream) {
  auto* const moments = reinterpret_cast<Moments*>(p.scratch);
  const int parts = static_cast<int>(parts_of(p.shape));
  const int64_t channels = p.shape.channels;
  with_element(dtype, [&](auto element) {
    using T = decltype(element);
    const PartMoments<T> body{p.shape, reinterpret_cast<const T*>(p.current), moments, parts};
    launch("panel_stats", body, ceil_div(parts * channels, body.kThreads), stream);
  });
  launch("panel_stats", Combine{moments, p.stats, channels, parts}, ceil_div(channels, Combine::kThreads), stream);
}

}  // namespace esl
