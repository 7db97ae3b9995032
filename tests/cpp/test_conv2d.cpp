#include "esl/conv2d.h"
#include "random.h"
#include "testing.h"
#include "weight.h"

using namespace esl;

namespace {

struct Case {
  int64_t groups, ci, co;  // channels of a group
  int64_t H, W, kh, kw, sh, sw, ph, pw, dh, dw;
  int64_t T, B;

  ConvShape shape() const {
    const int64_t Ho = (H + 2 * ph - dh * (kh - 1) - 1) / sh + 1, Wo = (W + 2 * pw - dw * (kw - 1) - 1) / sw + 1;
    return {groups, H, W, Ho, Wo, kh, kw, sh, sw, ph, pw, dh, dw};
  }
};

struct Kind {
  int planes;  // 0: floats
  float scale;
  SpikeKernel kernel;
};

// Panels [groups of lanes, pixels, channels, 64] of random values; what padding lanes hold is up to the caller.
struct Maps {
  Lanes lanes;
  int64_t H, W, channels;
  std::vector<float> data;

  Maps(Lanes lanes, int64_t H, int64_t W, int64_t channels, float fill)
      : lanes(lanes),
        H(H),
        W(W),
        channels(channels),
        data(static_cast<size_t>(lanes.groups() * H * W * channels * 64), fill) {}

  size_t place(int64_t lane, int64_t h, int64_t w, int64_t c) const {
    return static_cast<size_t>((((lane / 64 * H + h) * W + w) * channels + c) * 64 + lane % 64);
  }
  double at(int64_t lane, int64_t h, int64_t w, int64_t c) const { return data[place(lane, h, w, c)]; }

  // f(lane, h, w, c) of every lane that is no padding.
  template <class F>
  void each(F f) const {
    for (int64_t lane = 0; lane < lanes.count(); ++lane)
      if (lanes.row(lane) >= 0)
        for (int64_t h = 0; h < H; ++h)
          for (int64_t w = 0; w < W; ++w)
            for (int64_t c = 0; c < channels; ++c) f(lane, h, w, c);
  }
  void randomise(Random& random) {
    each([&](auto... i) { data[place(i...)] = random.real(); });
  }
};

// The words of levels 0 .. 2^planes - 1, which the maps then hold times scale.
std::vector<uint64_t> levels(Maps& x, Random& random, const Kind& kind) {
  const int64_t units = static_cast<int64_t>(x.data.size()) / 64;
  std::vector<uint64_t> words(static_cast<size_t>(kind.planes * units));
  x.each([&](auto... i) {
    const size_t place = x.place(i...);
    const uint64_t level = random.uniform() < 0.4 ? 1 + random.next() % ((1u << kind.planes) - 1) : 0;
    x.data[place] = kind.scale * static_cast<float>(level);
    for (int p = 0; p < kind.planes; ++p)
      words[static_cast<size_t>(p * units) + place / 64] |= (level >> p & 1) << (place % 64);
  });
  return words;
}

// f(row, column of the weight, input pixel and channel) of all that meets in output pixel (y, x).
template <class F>
void each_product(const ConvShape& s, int64_t ci, int64_t co, int64_t y, int64_t x, F f) {
  for (int64_t i = 0; i < s.kh; ++i)
    for (int64_t j = 0; j < s.kw; ++j) {
      const int64_t h = y * s.sh - s.ph + i * s.dh, w = x * s.sw - s.pw + j * s.dw;
      if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
      for (int64_t r = 0; r < s.groups * co; ++r)
        for (int64_t c = 0; c < ci; ++c) f(r, (i * s.kw + j) * ci + c, h, w, r / co * ci + c);
    }
}

void check(const Case& test, int64_t bm, int64_t bn, double density, const Kind& kind) {
  Random random{static_cast<uint64_t>(test.ci * 31 + test.co * 17 + bm * 5 + bn + test.B + kind.planes)};
  const ConvShape s = test.shape();
  const int64_t rows = test.groups * test.co, cols = s.kh * s.kw * test.ci, channels = test.groups * test.ci;
  const Weight w(random, rows, cols, bm, bn, density, test.groups, s.kh * s.kw);
  const Lanes lanes{test.T, test.B};

  Maps x(lanes, s.H, s.W, channels, 1e3f);  // padding lanes: anything finite
  std::vector<uint64_t> words;
  if (kind.planes)
    words = levels(x, random, kind);
  else
    x.randomise(random);
  Maps y(lanes, s.Ho, s.Wo, rows, poison(1)[0]), grad(lanes, s.Ho, s.Wo, rows, 0.f);
  grad.randomise(random);
  std::vector<float> bias = random.reals(rows);
  std::vector<double> stats(static_cast<size_t>(2 * rows), poison(1)[0]);
  const uint64_t* packed = kind.planes ? words.data() : nullptr;
  const float* floats = kind.planes ? nullptr : x.data.data();

  Conv2dForward f{w.view(),    s,          lanes,  bias.data(),   packed,
                  kind.planes, kind.scale, floats, y.data.data(), stats.data(),
                  kind.kernel, nullptr,    2};
  const auto forward = [&] {
    Scratch scratch(ESL_DISPATCH(conv2d_forward_scratch, f));
    f.scratch = scratch.data;
    ESL_DISPATCH(conv2d_forward, f);
  };
  forward();
  const std::vector<float> first = y.data;
  f.stats = nullptr;
  forward();

  Maps grad_x(lanes, s.H, s.W, channels, poison(1)[0]);
  std::vector<float> grad_values = poison(static_cast<int64_t>(w.values.size())), grad_bias = poison(rows);
  // All together, and each alone: the others' memory is not asked for then.
  for (const int wanted : {7, 1, 2, 4}) {
    Conv2dBackward b{w.view(),
                     s,
                     lanes,
                     grad.data.data(),
                     packed,
                     kind.planes,
                     kind.scale,
                     floats,
                     wanted & 1 ? grad_x.data.data() : nullptr,
                     wanted & 2 ? grad_values.data() : nullptr,
                     wanted & 4 ? grad_bias.data() : nullptr,
                     nullptr,
                     2};
    Scratch scratch(ESL_DISPATCH(conv2d_backward_scratch, b));
    b.scratch = scratch.data;
    ESL_DISPATCH(conv2d_backward, b);
  }

  const auto dense = [&](int64_t r, int64_t c) { return w.dense[static_cast<size_t>(r * cols + c)]; };
  std::vector<double> sum_y(y.data.size()), sum_x(x.data.size()), sum_w(w.dense.size()), sum_bias(bias.size());
  y.each([&](int64_t lane, int64_t h, int64_t w, int64_t r) {
    sum_y[y.place(lane, h, w, r)] = bias[static_cast<size_t>(r)];
    sum_bias[static_cast<size_t>(r)] += grad.at(lane, h, w, r);
  });
  for (int64_t lane = 0; lane < lanes.count(); ++lane)
    if (lanes.row(lane) >= 0)
      for (int64_t oy = 0; oy < s.Ho; ++oy)
        for (int64_t ox = 0; ox < s.Wo; ++ox)
          each_product(s, test.ci, test.co, oy, ox, [&](int64_t r, int64_t c, int64_t h, int64_t w, int64_t channel) {
            sum_y[y.place(lane, oy, ox, r)] += dense(r, c) * x.at(lane, h, w, channel);
            sum_x[x.place(lane, h, w, channel)] += dense(r, c) * grad.at(lane, oy, ox, r);
            sum_w[static_cast<size_t>(r * cols + c)] += x.at(lane, h, w, channel) * grad.at(lane, oy, ox, r);
          });

  y.each([&](auto... i) {
    const size_t place = y.place(i...);
    ESL_EXPECT(close(y.data[place], sum_y[place], 1e-4));
    ESL_EXPECT(y.data[place] == first[place]);
  });
  for (size_t i = 0; i < x.data.size(); ++i) ESL_EXPECT(close(grad_x.data[i], sum_x[i], 1e-4));  // padding lanes: 0
  w.each([&](size_t place, int64_t r, int64_t c) {
    ESL_EXPECT(close(grad_values[place], r < 0 ? 0. : sum_w[static_cast<size_t>(r * cols + c)], 1e-3));
    ESL_EXPECT(r >= 0 || grad_values[place] == 0.f);
  });
  for (size_t r = 0; r < bias.size(); ++r) ESL_EXPECT(close(grad_bias[r], sum_bias[r], 1e-3));

  std::vector<double> mean(bias.size()), square(bias.size());
  const double n = static_cast<double>(lanes.rows() * s.Ho * s.Wo);
  y.each(
      [&](int64_t lane, int64_t h, int64_t w, int64_t r) { mean[static_cast<size_t>(r)] += y.at(lane, h, w, r) / n; });
  y.each([&](int64_t lane, int64_t h, int64_t w, int64_t r) {
    const double away = y.at(lane, h, w, r) - mean[static_cast<size_t>(r)];
    square[static_cast<size_t>(r)] += away * away / n;
  });
  for (size_t r = 0; r < bias.size(); ++r) {
    ESL_EXPECT(close(stats[r], mean[r], 1e-6));
    ESL_EXPECT(close(stats[bias.size() + r], square[r], 1e-6));
  }
}

}  // namespace

void run() {
  const int64_t blocks[][2] = {{1, 1}, {1, 4}, {2, 2}, {4, 1}, {4, 4}, {8, 2}, {16, 16}, {32, 8}};
  const Kind kinds[] = {{0, 1.f, SpikeKernel::automatic},
                        {1, 1.f, SpikeKernel::automatic},
                        {1, 1.f, SpikeKernel::masked},
                        {3, 0.25f, SpikeKernel::automatic},
                        {4, 2.f, SpikeKernel::masked}};
  // groups, ci, co; H, W; kernel, stride, padding, dilation; T, B
  const Case cases[] = {
      {1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1},    //
      {1, 5, 6, 3, 4, 3, 3, 1, 1, 1, 1, 1, 1, 2, 5},    // 16 lanes
      {1, 3, 24, 4, 3, 2, 2, 2, 1, 0, 0, 1, 1, 1, 19},  // no border, pixels that no tap reads; by sources
      {2, 3, 5, 5, 6, 3, 2, 2, 1, 1, 0, 1, 3, 3, 21},   // 72 lanes
      {4, 1, 1, 3, 9, 1, 3, 1, 2, 0, 1, 1, 1, 1, 80},   // depthwise, 80 lanes; several runs
      {1, 6, 3, 2, 2, 2, 2, 3, 3, 4, 3, 1, 1, 1, 9},    // more border than map
  };
  int turn = 0;  // two kinds for each block, others for the next
  for (const Case& test : cases)
    for (const auto& [bm, bn] : blocks)
      for (int i = 0; i < 2; ++i) check(test, bm, bn, 0.4, kinds[turn++ % 5]);

  const Case deep{1, 60, 4, 2, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 5};  // more tables than are built at a time
  check(deep, 4, 4, 1., kinds[1]);
  check(deep, 1, 4, 1., kinds[3]);
  const Case wide{1, 48, 6, 1, 100, 1, 3, 1, 1, 0, 1, 1, 1, 1, 3};  // more than passes through L2 at a time
  check(wide, 1, 2, 0.9, kinds[0]);
  check({1, 2, 3, 9, 8, 3, 3, 1, 1, 1, 1, 1, 1, 2, 64}, 4, 1, 0.7,
        kinds[1]);  // 2 full groups of lanes, one row of runs
  for (const auto& [T, B] : {Lanes{2, 0}, Lanes{0, 4}})
    for (const Kind& kind : kinds) check({1, 5, 9, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1, T, B}, 4, 4, 0.5, kind);
  check(cases[1], 4, 4, 0., kinds[0]);  // no blocks
}
