// Op norm_lif. Memory-bound: forward reads 4 bytes a lane and writes a bit; backward reads 8 and writes 4, in place of
// the current; where gradients pass through batch statistics, a pass before it reads 8 for their sums. What that pass
// finds on its way is found again, not kept: it would be another panel. A step of a sample block starts at a vector
// of 16 lanes, or of 8 where the padded batch is no multiple of 16; neighbouring channels take a step together.
// Products and sums are rounded separately (no contraction), so spikes equal those of the plain torch loop.
#include "esl/norm_lif.h"

#include <cstring>

#include "esl/panel_tiles.h"
#include "esl/surrogate.h"

namespace esl::ESL_ISA {
namespace {

constexpr int64_t kBlock = 16;  // neighbouring channels that take a step together

// Where a lane of a unit stands; the next unit follows one word or one panel later.
struct Place {
  int64_t word, bit;
  Place(int64_t units, int64_t unit, int64_t lane) : word((lane >> 6) * units + unit), bit(lane & 63) {}
  int64_t panel() const { return word * kWord + bit; }
  Place after(int64_t words) const { return {word + words, bit}; }

 private:
  Place(int64_t word, int64_t bit) : word(word), bit(bit) {}
};

// N lanes, 8 or 16; of 8, the upper lanes are zero.
template <int N>
inline f32x16 load_lanes(const float* p) {
  return N == kLanes ? load(p) : load(p, N);
}
// Each group is a stream of its own, and a line of 16 lanes is every fourth one of a panel: too much for the hardware
// to foresee, so what the next block will touch is fetched.
template <int N>
inline f32x16 load_panel(const float* p) {
  prefetch(p + kBlock * kWord);
  return load_lanes<N>(p);
}
template <int N>
inline void store_panel(float* p, f32x16 x) {
  prefetch_to_write(p + kBlock * kWord);
  N == kLanes ? store(p, x) : store(p, x, N);
}
template <int N>
inline uint16_t load_bits(const uint64_t* words, const Place& at) {
  const char* p = reinterpret_cast<const char*>(words + at.word) + at.bit / 8;  // little-endian
  uint16_t bits = 0;
  std::memcpy(&bits, p, N / 8);
  return bits;
}
template <int N>
inline void store_bits(uint64_t* words, const Place& at, uint16_t bits) {
  std::memcpy(reinterpret_cast<char*>(words + at.word) + at.bit / 8, &bits, N / 8);
}
template <int N>
inline uint16_t valid_samples(const Lanes& lanes, int64_t b) {
  return static_cast<uint16_t>((1u << min(N, lanes.B - b)) - 1);
}

template <int N>
ESL_INLINE f32x16 normalised(const AffineCurrent& current, int64_t c, int64_t at) {
  const f32x16 x = load_panel<N>(current.panel + at);
  return current.a ? set1(current.a[c]) * x + set1(current.b[c]) : x;
}

// What neurons of channel c integrate.
template <int N>
ESL_INLINE f32x16 total(const NormLifInput& in, int64_t c, const Place& at) {
  f32x16 x = normalised<N>(in.current[0], c, at.panel());
  if (in.current[1].panel) x = x + normalised<N>(in.current[1], c, at.panel());
  if (!in.planes) return x;
  const int64_t plane_words = in.shape.lanes.groups() * in.shape.units();
  f32x16 level = zero();
  for (int p = 0; p < in.planes; ++p)
    level = add_where(level, load_bits<N>(in.residual, at.after(p * plane_words)), set1(static_cast<float>(1 << p)));
  return x + set1(in.residual_scale) * level;
}

template <bool Hard>
inline f32x16 after_reset(f32x16 u, uint16_t spikes, const LifNeuron& n) {
  if constexpr (Hard) return add_where(keep_where(static_cast<uint16_t>(~spikes), u), spikes, set1(n.v_reset));
  return add_where(u, spikes, set1(-n.v_threshold));
}
inline f32x16 start(const LifNeuron& n) { return set1(n.hard_reset ? n.v_reset : 0.f); }

template <int N, bool Hard>
void forward(const NormLifForward& params) {
  for_tiles(params.in.shape, params.in.threads, [&](const Tile& tile, int64_t) {
    const NormLifForward p = params;
    const NormLifInput& in = p.in;
    const int64_t T = in.shape.lanes.T, padded = in.shape.lanes.padded(), lanes = T * padded, units = in.shape.units();
    const f32x16 tau = set1(in.neuron.tau), threshold = set1(in.neuron.v_threshold);
    float v[kBlock * kLanes];
    for_blocks(tile, kBlock, [&](int64_t pixel, int64_t c, int64_t n) {
      const int64_t unit = pixel * in.shape.channels + c;
      if (lanes % kWord)
        for (int64_t j = 0; j < n; ++j) p.words[Place(units, unit + j, lanes).word] = 0;
      for (int64_t b = 0; b < padded; b += N) {
        const uint16_t valid = valid_samples<N>(in.shape.lanes, b);
        for (int64_t j = 0; j < n; ++j) store(v + j * kLanes, start(in.neuron));
        for (int64_t t = 0; t < T; ++t) {
          const Place first(units, unit, t * padded + b);
          for (int64_t j = 0; j < n; ++j) {
            const Place at = first.after(j);
            const f32x16 u = tau * load(v + j * kLanes) + total<N>(in, c + j, at);
            const uint16_t spikes = greater(u, threshold) & valid;
            store_bits<N>(p.words, at, spikes);
            store(v + j * kLanes, after_reset<Hard>(u, spikes, in.neuron));
          }
        }
      }
    });
  });
}

// The gradient of a current follows from g, that of the sum of currents. Where the statistics are constant it is a * g,
// else a * (g - mean(g) - (current - mean) * slope) with slope = rstd^2 * mean(g * (current - mean)).
inline bool through_stats(const NormGradient& norm) { return norm.batch_stats && norm.grad_current; }

// What a pass back through time is for.
enum class Pass {
  sums,       // over each channel
  gradients,  // of the currents, from the sums of the pass before
  both,       // gradients that need no sums, and sums
};

// Parts of the scratch, as places in it: first the floats of each thread, which start at a cache line.
struct Scratch {
  int64_t own;          // floats of one thread: potentials [T, kBlock, 16] and sums of a tile [3, channels, 16]
  int64_t sums;         // [tile rows, 3, C]: of g, of g * (current - mean) for both currents
  int64_t tau;          // [tile rows, tiles across]
  int64_t means, size;  // [3, C]: mean of g, slopes

  explicit Scratch(const NormLifBackward& p) {
    const PanelShape& s = p.in.shape;
    const Tiles tiles(s);
    own = (s.lanes.T * kBlock + 3 * tiles.channels) * kLanes;
    sums = threads_for(s, p.in.threads) * own / 2;
    tau = sums + tiles.rows * 3 * s.channels;
    means = tau + tiles.count();
    size = means + 3 * s.channels;
  }
};

// Write the gradients of channel c that follow from g at N lanes of the panels, each over its current; padding lanes
// get zero.
template <int N>
ESL_INLINE void put(const NormLifBackward& p, const double* means, int64_t c, int64_t at, uint16_t valid, f32x16 g) {
  if (p.grad_residual) store_panel<N>(p.grad_residual + at, keep_where(valid, g));
  for (int i = 0; i < 2; ++i) {
    const NormGradient& norm = p.norm[i];
    if (!norm.grad_current) continue;
    f32x16 grad = g;
    if (norm.batch_stats) {
      const f32x16 centred = load_lanes<N>(p.in.current[i].panel + at) - set1(norm.mean[c]);
      const f32x16 slope = set1(static_cast<float>(means[(i + 1) * p.in.shape.channels + c]));
      grad = g - set1(static_cast<float>(means[c])) - centred * slope;
    }
    if (p.in.current[i].a) grad = set1(p.in.current[i].a[c]) * grad;
    store_panel<N>(norm.grad_current + at, keep_where(valid, grad));
  }
}

inline void add_to(float* sum, f32x16 x) { store(sum, load(sum) + x); }

// Back through time.
template <Surrogate kind, int N, bool Hard, Pass pass>
struct ThroughTime {
  static constexpr bool kSums = pass != Pass::gradients, kPuts = pass != Pass::sums;
  const NormLifBackward p;
  const NormLifInput in;
  const LifNeuron n;
  const int64_t T, padded, lanes, units, pooled_units;
  const double* const means;  // of all tiles
  const bool wants_gx[2];
  float* const potentials;  // [T, kBlock, 16], before each reset
  float* const sums;        // [3, channels of the tile, 16]
  const int64_t sums_stride;

  ThroughTime(const NormLifBackward& call, const Tile& tile, float* own)
      : p(call),
        in(p.in),
        n(in.neuron),
        T(in.shape.lanes.T),
        padded(in.shape.lanes.padded()),
        lanes(T * padded),
        units(in.shape.units()),
        pooled_units((in.shape.height / p.pool) * (in.shape.width / p.pool) * in.shape.channels),
        means(p.scratch + Scratch(p).means),
        wants_gx{through_stats(p.norm[0]) || p.norm[0].grad_gamma, through_stats(p.norm[1]) || p.norm[1].grad_gamma},
        potentials(own),
        sums(own + T * kBlock * kLanes),
        sums_stride((tile.last_channel - tile.channel) * kLanes) {}

  // N samples of `count` channels from c on, all steps: potentials.
  ESL_INLINE void forth(int64_t unit, int64_t c, int64_t count, int64_t b) const {
    const uint16_t valid = valid_samples<N>(in.shape.lanes, b);
    const f32x16 tau = set1(n.tau);
    float v[kBlock * kLanes];
    for (int64_t j = 0; j < count; ++j) store(v + j * kLanes, start(n));
    for (int64_t t = 0; t < T; ++t) {
      const Place first(units, unit, t * padded + b);
      for (int64_t j = 0; j < count; ++j) {
        const Place at = first.after(j);
        const f32x16 u = tau * load(v + j * kLanes) + keep_where(valid, total<N>(in, c + j, at));
        store(potentials + (t * kBlock + j) * kLanes, u);
        store(v + j * kLanes, after_reset<Hard>(u, load_bits<N>(p.words, at), n));
      }
    }
  }

  // And back: gradients. grad_unit: of the pooled gradient, -1 where pooling drops the pixel.
  ESL_INLINE void back(int64_t unit, int64_t grad_unit, int64_t c, int64_t count, int64_t b, float* channel_sums,
                       f32x16& sum_tau) const {
    const uint16_t valid = valid_samples<N>(in.shape.lanes, b);
    const f32x16 tau = set1(n.tau), threshold = set1(n.v_threshold);
    const f32x16 share = set1(1.f / static_cast<float>(p.pool * p.pool));
    const float inverse = 1.f / p.width;
    float grad_v[kBlock * kLanes];
    for (int64_t j = 0; j < count; ++j) store(grad_v + j * kLanes, zero());
    for (int64_t t = T - 1; t >= 0; --t) {
      const int64_t lane = t * padded + b;
      const Place first(units, unit, lane);
      const float* const pooled = p.grad + Place(pooled_units, grad_unit, lane).panel();
      for (int64_t j = 0; j < count; ++j) {
        const Place at = first.after(j);
        const f32x16 u = load(potentials + (t * kBlock + j) * kLanes), gv = load(grad_v + j * kLanes);
        f32x16 grad = grad_unit < 0 ? zero() : share * load_panel<N>(pooled + j * kWord);
        if (!p.detach_reset) grad = grad + gv * (Hard ? set1(n.v_reset) - u : set1(-n.v_threshold));
        const auto silent = static_cast<uint16_t>(~load_bits<N>(p.words, at));
        const f32x16 g =
            grad * derivative<kind>(u - threshold, p.width, inverse) + (Hard ? keep_where(silent, gv) : gv);
        store(grad_v + j * kLanes, tau * g);
        if constexpr (kSums) {
          add_to(channel_sums + j * kLanes, g);
          for (int i = 0; i < 2; ++i) {
            if (!wants_gx[i]) continue;
            const f32x16 centred = load_lanes<N>(in.current[i].panel + at.panel()) - set1(p.norm[i].mean[c + j]);
            add_to(channel_sums + (i + 1) * sums_stride + j * kLanes, keep_where(valid, g * centred));
          }
        }
        if constexpr (kPuts) put<N>(p, means, c + j, at.panel(), valid, g);
        if (!kSums || !p.grad_tau) continue;
        f32x16 before = start(n);
        if (t > 0) {
          const uint16_t spikes = load_bits<N>(p.words, Place(units, unit + j, lane - padded));
          before = after_reset<Hard>(load(potentials + ((t - 1) * kBlock + j) * kLanes), spikes, n);
        }
        sum_tau = sum_tau + g * before;
      }
    }
  }

  // Returns the tile's part of grad_tau; the other sums are left in `sums`.
  float run(const Tile& tile) const {
    const PanelShape& s = in.shape;
    for (int64_t i = 0; i < 3 * sums_stride; i += kLanes) store(sums + i, zero());
    f32x16 sum_tau = zero();
    for_blocks(tile, kBlock, [&](int64_t pixel, int64_t c, int64_t count) {
      const int64_t y = pixel / s.width / p.pool, x = pixel % s.width / p.pool;
      const bool dropped = y >= s.height / p.pool || x >= s.width / p.pool;
      const int64_t unit = pixel * s.channels + c;
      const int64_t grad_unit = dropped ? -1 : (y * (s.width / p.pool) + x) * s.channels + c;
      for (int64_t b = 0; b < padded; b += N) {
        forth(unit, c, count, b);
        back(unit, grad_unit, c, count, b, sums + (c - tile.channel) * kLanes, sum_tau);
      }
      // The rest of the last group: a multiple of N, as is the count of lanes.
      for (int64_t lane = lanes; kPuts && lane < s.lanes.groups() * kWord; lane += N)
        for (int64_t j = 0; j < count; ++j) put<N>(p, means, c + j, Place(units, unit + j, lane).panel(), 0, zero());
    });
    return sum(sum_tau);
  }
};

template <Surrogate kind, int N, bool Hard, Pass pass>
void through_time(const NormLifBackward& p) {
  const PanelShape& s = p.in.shape;
  const Scratch at(p);
  const Tiles tiles(s);
  for_tiles(s, p.in.threads, [&](const Tile& tile, int64_t thread) {
    const ThroughTime<kind, N, Hard, pass> run(p, tile, reinterpret_cast<float*>(p.scratch) + thread * at.own);
    const float tau = run.run(tile);
    if (pass == Pass::gradients) return;
    p.scratch[at.tau + tile.row * tiles.across + tile.channel / tiles.channels] = tau;
    for (int i = 0; i < 3; ++i)
      for (int64_t c = tile.channel; c < tile.last_channel; ++c)
        p.scratch[at.sums + (tile.row * 3 + i) * s.channels + c] =
            sum(load(run.sums + i * run.sums_stride + (c - tile.channel) * kLanes));
  });
}

// Combine the tiles' sums, in their order.
void combine(const NormLifBackward& p) {
  const PanelShape& s = p.in.shape;
  const Scratch at(p);
  const int64_t C = s.channels, rows = Tiles(s).rows;
  const double count = static_cast<double>(s.lanes.rows() * s.pixels());
  double* const total = p.scratch + at.means;
  for (int64_t i = 0; i < 3 * C; ++i) total[i] = 0;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < 3 * C; ++i) total[i] += p.scratch[at.sums + row * 3 * C + i];
  for (int64_t c = 0; c < C; ++c) {
    for (int i = 0; i < 2; ++i) {
      const NormGradient& norm = p.norm[i];
      double& gx = total[(i + 1) * C + c];
      const double rstd = norm.rstd ? norm.rstd[c] : 1;
      if (norm.grad_gamma) norm.grad_gamma[c] = static_cast<float>(gx * rstd);
      if (norm.grad_beta) norm.grad_beta[c] = static_cast<float>(total[c]);
      gx = gx * rstd * rstd / count;
    }
    total[c] /= count;
  }
  if (!p.grad_tau) return;
  *p.grad_tau = 0;
  for (int64_t i = at.tau; i < at.means; ++i) *p.grad_tau += p.scratch[i];
}

template <Surrogate kind, int N, bool Hard>
void backward_of(const NormLifBackward& p) {
  if (through_stats(p.norm[0]) || through_stats(p.norm[1])) {
    through_time<kind, N, Hard, Pass::sums>(p);
    combine(p);
    through_time<kind, N, Hard, Pass::gradients>(p);
  } else {
    through_time<kind, N, Hard, Pass::both>(p);
    combine(p);
  }
}

template <Surrogate kind>
void backward_of(const NormLifBackward& p) {
  const bool half = p.in.shape.lanes.padded() % kLanes != 0;
  if (p.in.neuron.hard_reset)
    half ? backward_of<kind, 8, true>(p) : backward_of<kind, kLanes, true>(p);
  else
    half ? backward_of<kind, 8, false>(p) : backward_of<kind, kLanes, false>(p);
}

}  // namespace

void norm_lif_forward(const NormLifForward& p) {
  const bool half = p.in.shape.lanes.padded() % kLanes != 0;
  if (p.in.neuron.hard_reset)
    half ? forward<8, true>(p) : forward<kLanes, true>(p);
  else
    half ? forward<8, false>(p) : forward<kLanes, false>(p);
}

int64_t norm_lif_backward_scratch(const NormLifBackward& p) { return Scratch(p).size; }

void norm_lif_backward(const NormLifBackward& p) {
  switch (p.surrogate) {
    case Surrogate::triangle:
      backward_of<Surrogate::triangle>(p);
      break;
    case Surrogate::rectangle:
      backward_of<Surrogate::rectangle>(p);
      break;
    case Surrogate::sigmoid:
      backward_of<Surrogate::sigmoid>(p);
      break;
    default:
      backward_of<Surrogate::atan>(p);
  }
}

}  // namespace esl::ESL_ISA
