// Op conv2d, and linear as a convolution of one pixel: y and the gradient of x. For blocks that are too small for
// tensor cores, and GPUs that Triton does not serve.
//
// A warp makes a tile of P pixels times TM channels of 64 lanes, in registers. All that it reads is shared by its
// threads, a word or a weight, or is a panel, 256 bytes in a row; one weight serves 64 P products. Spikes are masked
// additions: nothing is multiplied.
#include "conv2d.h"

namespace esl {

namespace cuda {

ConvSizes::ConvSizes(const Conv2dCuda& p)
    : groups(static_cast<int>(p.shape.groups)),
      ci(int32("conv2d", "input channels", p.w.cols / (p.shape.kh * p.shape.kw))),
      co(int32("conv2d", "output channels", p.w.rows / p.shape.groups)),
      row_blocks(static_cast<int>(ceil_div(co, p.w.bm))),
      col_blocks(static_cast<int>(ceil_div(ci, p.w.bn))),
      bm(static_cast<int>(p.w.bm)),
      bn(static_cast<int>(p.w.bn)),
      H(int32("conv2d", "pixels", p.shape.H)),
      W(int32("conv2d", "pixels", p.shape.W)),
      Ho(static_cast<int>(p.shape.Ho)),
      Wo(static_cast<int>(p.shape.Wo)),
      kh(static_cast<int>(p.shape.kh)),
      kw(static_cast<int>(p.shape.kw)),
      ph(int32("conv2d", "padding", p.shape.ph)),
      pw(int32("conv2d", "padding", p.shape.pw)),
      dh(int32("conv2d", "dilation", p.shape.dh)),
      dw(int32("conv2d", "dilation", p.shape.dw)),
      channels(int32("conv2d", "input channels", p.shape.groups * ci)),
      rows(int32("conv2d", "output channels", p.w.rows)),
      sh(int32("conv2d", "stride", p.shape.sh)),
      sw(int32("conv2d", "stride", p.shape.sw)),
      by_kw(static_cast<int>(p.shape.kw)),
      by_col_blocks(col_blocks > 0 ? col_blocks : 1),
      one_tap(kh * kw == 1),
      all_inside(ph == 0 && pw == 0 && (p.shape.Ho - 1) * p.shape.sh + (p.shape.kh - 1) * p.shape.dh < p.shape.H &&
                 (p.shape.Wo - 1) * p.shape.sw + (p.shape.kw - 1) * p.shape.dw < p.shape.W) {}

namespace {

constexpr int kThreads = kWarps * 32;
constexpr int kOutside = INT_MIN / 2;  // a pixel that no tap brings inside

// The tile of a warp: blocks of threads take kWarps tiles of pixels and the same channels, whose weights they share.
struct Grid {
  int positions, pixels, width;  // over all groups of lanes; of a group; of a row
  int blocks;                    // of threads, over all positions
  int tiles;                     // of channels

  Grid(const char* op, int64_t lane_groups, int height, int width, int per_warp, int64_t tiles)
      : positions(int32(op, "pixels times groups of lanes", lane_groups * height * width)),
        pixels(height * width),
        width(width),
        blocks(static_cast<int>(ceil_div(positions, per_warp * kWarps))),
        tiles(int32(op, "tiles of channels", tiles)) {}
  int64_t count() const { return static_cast<int64_t>(blocks) * tiles; }
};

template <class Source, int TM, int P>
struct Forward {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  Conv2dCuda p;
  const float* bias;
  void* y;
  Source source;
  ConvSizes s;
  Grid grid;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int pair = thread % 32, tile = block / grid.blocks;
    const int first = (block % grid.blocks * kWarps + thread / 32) * P;
    const int tiles = (s.bm + TM - 1) / TM, rb = tile / tiles, i0 = tile % tiles * TM;
    const int group = rb / s.row_blocks, in_group = rb % s.row_blocks * s.bm + i0;
    const int outs = min(min(TM, s.bm - i0), s.co - in_group);
    if (first >= grid.positions || outs <= 0) return;
    int y0[P], x0[P];
    int64_t base[P];
    uint32_t present = 0;
#pragma unroll
    for (int u = 0; u < P; ++u) {
      const int g = (first + u) / grid.pixels, pixel = (first + u) % grid.pixels;
      present |= static_cast<uint32_t>(first + u < grid.positions) << u;
      y0[u] = pixel / grid.width * s.sh.d - s.ph;
      x0[u] = pixel % grid.width * s.sw.d - s.pw;
      base[u] = ((static_cast<int64_t>(g) * s.H + y0[u]) * s.W + x0[u]) * s.channels + group * s.ci;
    }
    float acc[P][TM][2] = {};
    const int end = p.w.crow[rb + 1];
    for (int b = p.w.crow[rb]; b < end; ++b) {
      const Tap tap(s, p.w.col[b]);
      const int64_t offset = (static_cast<int64_t>(tap.y) * s.W + tap.x) * s.channels + tap.channel;
      uint32_t inside = present;
      if (!s.all_inside) {
#pragma unroll
        for (int u = 0; u < P; ++u) {
          const bool in = static_cast<unsigned>(y0[u] + tap.y) < static_cast<unsigned>(s.H) &&
                          static_cast<unsigned>(x0[u] + tap.x) < static_cast<unsigned>(s.W);
          inside &= ~(static_cast<uint32_t>(!in) << u);
        }
      }
      if (!inside) continue;
      const float* w = p.w.values + (static_cast<int64_t>(b) * s.bm + i0) * s.bn;
      multiply(source.after(offset), acc, base, inside, min(s.bn, s.ci - tap.channel), pair, w, s.bn, 1, outs);
    }
    const int row = group * s.co + in_group;
#pragma unroll
    for (int u = 0; u < P; ++u) {
      if (first + u >= grid.positions) continue;
#pragma unroll
      for (int i = 0; i < TM; ++i) {
        if (i >= outs) continue;
        const float shift = bias ? bias[row + i] : 0.f;
        store_pair(y, p.dtype, (static_cast<int64_t>(first + u) * s.rows + row + i) * 64 + 2 * pair,
                   acc[u][i][0] * p.scale + shift, acc[u][i][1] * p.scale + shift);
      }
    }
  }
};

// The first of the ascending numbers a[begin, end) that is not below x.
ESL_INLINE int lower_bound(const int32_t* a, int begin, int end, int x) {
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (a[middle] < x)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

template <class T, int TM, int P>
struct GradInput {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  Conv2dCuda p;
  Panels<T> grad;
  T* grad_x;
  ConvSizes s;
  LaneCount lanes;
  Grid grid;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int pair = thread % 32, tile = block / grid.blocks;
    const int first = (block % grid.blocks * kWarps + thread / 32) * P;
    const int tiles = (s.bn + TM - 1) / TM, j0 = tile % tiles * TM;
    const int group = tile / tiles / s.col_blocks, cb = tile / tiles % s.col_blocks, in_group = cb * s.bn + j0;
    const int outs = min(min(TM, s.bn - j0), s.ci - in_group);
    if (first >= grid.positions || outs <= 0) return;
    int y0[P], x0[P], lane_group[P];
#pragma unroll
    for (int u = 0; u < P; ++u) {
      const int pixel = (first + u) % grid.pixels;
      lane_group[u] = (first + u) / grid.pixels;
      y0[u] = first + u < grid.positions ? pixel / grid.width + s.ph : kOutside;
      x0[u] = pixel % grid.width + s.pw;
    }
    float acc[P][TM][2] = {};
    for (int tap = 0; tap < s.kh * s.kw; ++tap) {
      const int dy = s.by_kw(tap) * s.dh, dx = (tap - s.by_kw(tap) * s.kw) * s.dw;
      int64_t base[P];
      uint32_t inside = 0;
#pragma unroll
      for (int u = 0; u < P; ++u) {
        const int y = y0[u] - dy, x = x0[u] - dx, yo = s.sh(y < 0 ? 0 : y), xo = s.sw(x < 0 ? 0 : x);
        const bool in = y >= 0 && x >= 0 && yo * s.sh.d == y && xo * s.sw.d == x && yo < s.Ho && xo < s.Wo;
        inside |= static_cast<uint32_t>(in) << u;
        base[u] = ((static_cast<int64_t>(lane_group[u]) * s.Ho + yo) * s.Wo + xo) * s.rows + group * s.co;
      }
      if (!inside) continue;
      const int column = tap * s.col_blocks + cb;
      int q = p.w.ccol[column], end = p.w.ccol[column + 1];
      if (s.groups > 1) {
        q = lower_bound(p.w.row_t, q, end, group * s.row_blocks);
        end = lower_bound(p.w.row_t, q, end, (group + 1) * s.row_blocks);
      }
      for (; q < end; ++q) {
        const int row = (p.w.row_t[q] - group * s.row_blocks) * s.bm;
        const float* w = p.w.values + static_cast<int64_t>(p.w.offset_t[q]) * s.bm * s.bn + j0;
        multiply(grad.after(row), acc, base, inside, min(s.bm, s.co - row), pair, w, 1, s.bn, outs);
      }
    }
    const int channel = group * s.ci + in_group;
#pragma unroll
    for (int u = 0; u < P; ++u) {
      if (first + u >= grid.positions) continue;
      const int lane = lane_group[u] * 64 + 2 * pair;
      const bool even = lanes.row(lane) >= 0, odd = lanes.row(lane + 1) >= 0;
#pragma unroll
      for (int i = 0; i < TM; ++i)
        if (i < outs)
          store_pair(grad_x + (static_cast<int64_t>(first + u) * s.channels + channel + i) * 64 + 2 * pair,
                     even ? acc[u][i][0] : 0.f, odd ? acc[u][i][1] : 0.f);
    }
  }
};

template <class Source, int TM, int P>
void forward(const Conv2dCuda& p, const float* bias, void* y, const Source& source, Stream stream) {
  const ConvSizes s(p);
  const int64_t tiles = static_cast<int64_t>(s.groups) * s.row_blocks * ceil_div(s.bm, TM);
  const Grid grid("conv2d", p.lanes.groups(), s.Ho, s.Wo, P, tiles);
  launch("conv2d", Forward<Source, TM, P>{p, bias, y, source, s, grid}, grid.count(), stream);
}

template <class T, int TM, int P>
void grad_input(const Conv2dCuda& p, const void* grad, void* grad_x, Stream stream) {
  const ConvSizes s(p);
  const int64_t tiles = static_cast<int64_t>(s.groups) * s.col_blocks * ceil_div(s.bn, TM);
  const Grid grid("conv2d_backward", p.lanes.groups(), s.H, s.W, P, tiles);
  const GradInput<T, TM, P> body{p, {static_cast<const T*>(grad)},         static_cast<T*>(grad_x),
                                 s, LaneCount("conv2d_backward", p.lanes), grid};
  launch("conv2d_backward", body, grid.count(), stream);
}

template <class Source>
void forward(const Conv2dCuda& p, const float* bias, void* y, const Source& source, Stream stream) {
  p.w.bm < 4   ? forward<Source, 1, 6>(p, bias, y, source, stream)
  : p.w.bm < 8 ? forward<Source, 4, 4>(p, bias, y, source, stream)
               : forward<Source, 8, 4>(p, bias, y, source, stream);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void launch_conv2d_forward(const Conv2dCuda& p, const float* bias, void* y, Stream stream) {
  if (p.words) {
    const int64_t plane =
        p.lanes.groups() * p.shape.H * p.shape.W * p.shape.groups * (p.w.cols / p.shape.kh / p.shape.kw);
    forward(p, bias, y, Spikes{reinterpret_cast<const uint32_t*>(p.words), 2 * plane, p.planes}, stream);
  } else {
    forward(p, bias, y, Panels<float>{p.x}, stream);
  }
}

void launch_conv2d_grad_input(const Conv2dCuda& p, const void* grad, void* grad_x, Stream stream) {
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    p.w.bn < 4   ? grad_input<T, 1, 6>(p, grad, grad_x, stream)
    : p.w.bn < 8 ? grad_input<T, 4, 4>(p, grad, grad_x, stream)
                 : grad_input<T, 8, 4>(p, grad, grad_x, stream);
  });
}

}  // namespace esl
