// Op conv2d: the gradient of values. A thread owns one column of a block and TM of its rows: it reads words of its own,
// and gradients that it shares with the other threads of its block row. No two threads need each other.
#include "conv2d.h"

namespace esl {

namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kEnoughThreads = 1 << 17;  // more parts than these need would only make more partial sums
constexpr int kRun = 32;                     // pixels that are summed before their sum joins the others

struct SpikeColumn {
  const uint64_t* words;
  int64_t plane_words;
  int planes;

  // acc[i] += the gradients of row i where `unit` spikes; two sums each, so that additions need not wait. Rows after
  // the last one do not exist: they are read as that one, and dropped.
  template <class T, int TM>
  ESL_INLINE void add(float (&acc)[TM][2], int64_t unit, const T* grad, int last) const {
    float factor = 1.f;
    for (int plane = 0; plane < planes; ++plane, factor *= 2.f) {
      uint64_t bits = words[plane * plane_words + unit];
#pragma unroll 4
      for (int l = 0; l < 64 && bits; l += 4, bits >>= 4) {
#pragma unroll
        for (int i = 0; i < TM; ++i) {
          const Vector<T, 4> g = load<4>(grad + min(i, last) * 64 + l);
#pragma unroll
          for (int k = 0; k < 4; ++k)
            if (bits >> k & 1) acc[i][k % 2] += widen(g.x[k]) * factor;
        }
      }
    }
  }
};

struct PanelColumn {
  const float* panels;

  template <class T, int TM>
  ESL_INLINE void add(float (&acc)[TM][2], int64_t unit, const T* grad, int last) const {
#pragma unroll 4
    for (int l = 0; l < 64; l += 4) {
      const Vector<float, 4> x = load<4>(panels + unit * 64 + l);
#pragma unroll
      for (int i = 0; i < TM; ++i) {
        const Vector<T, 4> g = load<4>(grad + min(i, last) * 64 + l);
#pragma unroll
        for (int k = 0; k < 4; ++k) acc[i][k % 2] += widen(g.x[k]) * x.x[k];
      }
    }
  }
};

template <class Source, class T, int TM>
struct GradValues {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  Conv2dCuda p;
  Source source;
  const T* grad;
  float* out;  // [parts, nnzb, bm, bn]
  ConvSizes s;
  int blocks, tiles;  // blocks of threads over all columns; tiles of a block's rows
  int positions, per_part;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t column = static_cast<int64_t>(block % blocks) * kThreads + thread;
    const int tile = block / blocks % tiles, part = block / blocks / tiles;
    if (column >= p.nnzb * s.bn) return;
    const int b = static_cast<int>(column / s.bn), j = static_cast<int>(column % s.bn), i0 = tile * TM;
    int rb = 0, last = s.groups * s.row_blocks;  // the row block of b: crow[rb] <= b < crow[rb + 1]
    while (last - rb > 1) {
      const int middle = rb + (last - rb) / 2;
      (p.w.crow[middle] <= b ? rb : last) = middle;
    }
    const Tap tap(s, p.w.col[b]);
    const int group = rb / s.row_blocks, in_group = rb % s.row_blocks * s.bm + i0;
    const int outs = tap.channel + j < s.ci ? min(min(TM, s.bm - i0), s.co - in_group) : 0;
    float total[TM] = {};
    if (outs > 0) sum(total, part, tap, group * s.ci + tap.channel + j, group * s.co + in_group, outs);
#pragma unroll
    for (int i = 0; i < TM; ++i)
      if (i0 + i < s.bm)
        out[((static_cast<int64_t>(part) * p.nnzb + b) * s.bm + i0 + i) * s.bn + j] =
            i < outs ? total[i] * p.scale : 0.f;
  }

  ESL_INLINE void sum(float (&total)[TM], int part, const Tap& tap, int channel, int row, int outs) const {
    const int begin = part * per_part, end = min(positions, begin + per_part);
    int g = begin / (s.Ho * s.Wo), yo = begin / s.Wo % s.Ho, xo = begin % s.Wo;
    for (int run = begin; run < end; run += kRun) {
      float acc[TM][2] = {};
      for (int at = run; at < min(end, run + kRun); ++at) {
        const int y = yo * s.sh.d - s.ph + tap.y, x = xo * s.sw.d - s.pw + tap.x;
        if (static_cast<unsigned>(y) < static_cast<unsigned>(s.H) &&
            static_cast<unsigned>(x) < static_cast<unsigned>(s.W)) {
          const int64_t unit = ((static_cast<int64_t>(g) * s.H + y) * s.W + x) * s.channels + channel;
          source.add(acc, unit, grad + (static_cast<int64_t>(at) * s.rows + row) * 64, outs - 1);
        }
        if (++xo == s.Wo) {
          xo = 0;
          if (++yo == s.Ho) yo = 0, ++g;
        }
      }
#pragma unroll
      for (int i = 0; i < TM; ++i) total[i] += acc[i][0] + acc[i][1];
    }
  }
};

struct AddParts {
  static constexpr int kThreads = 256, kPhases = 1;
  using Shared = Empty;
  const float* parts;
  float* out;
  int64_t size;
  int count;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t at = static_cast<int64_t>(block) * kThreads + thread;
    if (at >= size) return;
    float sum = parts[at];
    for (int i = 1; i < count; ++i) sum += parts[i * size + at];
    out[at] = sum;
  }
};

int tile_rows(const Conv2dCuda& p) { return p.w.bm < 4 ? 1 : 4; }

int64_t position_count(const Conv2dCuda& p) { return p.lanes.groups() * p.shape.Ho * p.shape.Wo; }

int64_t per_part(const Conv2dCuda& p) {
  const int64_t threads = p.nnzb * p.w.bn * ceil_div(p.w.bm, tile_rows(p)), positions = position_count(p);
  const int64_t wanted = threads > 0 ? ceil_div(kEnoughThreads, threads) : 1;
  const int64_t least = 4;  // pixels of a part
  const int64_t per = ceil_div(positions, wanted);
  return per < least ? least : per;
}

template <class Source, class T, int TM>
void launch_tiles(const Conv2dCuda& p, const Source& source, const void* grad, float* out, Stream stream) {
  constexpr const char* op = "conv2d_backward";
  const ConvSizes s(p);
  const int64_t blocks = ceil_div(p.nnzb * s.bn, kThreads), tiles = ceil_div(s.bm, TM);
  const GradValues<Source, T, TM> body{p,
                                       source,
                                       static_cast<const T*>(grad),
                                       out,
                                       s,
                                       int32(op, "blocks of threads", blocks),
                                       static_cast<int>(tiles),
                                       int32(op, "pixels times groups of lanes", position_count(p)),
                                       int32(op, "pixels of a part", per_part(p))};
  launch(op, body, blocks * tiles * conv2d_grad_values_parts(p), stream);
}

template <class Source>
void launch_source(const Conv2dCuda& p, const Source& source, const void* grad, float* out, Stream stream) {
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    tile_rows(p) == 1 ? launch_tiles<Source, T, 1>(p, source, grad, out, stream)
                      : launch_tiles<Source, T, 4>(p, source, grad, out, stream);
  });
}

}  // namespace
}  // namespace cuda

using namespace cuda;

int64_t conv2d_grad_values_parts(const Conv2dCuda& p) {
  const int64_t parts = ceil_div(position_count(p), per_part(p));
  return parts > 1 ? parts : 1;
}

void launch_conv2d_grad_values(const Conv2dCuda& p, const void* grad, float* grad_values, float* parts, Stream stream) {
  float* const out = parts ? parts : grad_values;
  if (p.words) {
    const int64_t channels = p.shape.groups * (p.w.cols / (p.shape.kh * p.shape.kw));
    const int64_t plane = p.lanes.groups() * p.shape.H * p.shape.W * channels;
    launch_source(p, SpikeColumn{p.words, plane, p.planes}, grad, out, stream);
  } else {
    launch_source(p, PanelColumn{p.x}, grad, out, stream);
  }
  if (!parts) return;
  const int64_t size = p.nnzb * p.w.bm * p.w.bn;
  const AddParts add{parts, grad_values, size, static_cast<int>(conv2d_grad_values_parts(p))};
  launch("conv2d_backward", add, ceil_div(size, AddParts::kThreads), stream);
}

}  // namespace esl
