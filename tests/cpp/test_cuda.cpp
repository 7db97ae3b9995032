// The CUDA kernels, emulated (csrc/cuda/launch.h), against the CPU kernels, which have tests of their own.
#include <algorithm>
#include <array>
#include <functional>
#include <numeric>

#include "../../csrc/cuda/conv2d.h"
#include "esl/block_score.h"
#include "esl/norm_lif.h"
#include "esl/pack.h"
#include "esl/panel_stats.h"
#include "esl/pool.h"
#include "esl/sample.h"
#include "esl/select.h"
#include "esl/temporal.h"
#include "esl/transpose_index.h"
#include "random.h"
#include "testing.h"
#include "weight.h"

using namespace esl;

namespace {

size_t size(int64_t n) { return static_cast<size_t>(n); }

void division() {
  Random random{1};
  for (const int d : {1, 2, 3, 5, 6, 7, 9, 127, 128, 1000003, (1 << 30) + 1, INT_MAX - 1, INT_MAX}) {
    const cuda::Divider divide(d);
    for (const int n : {0, 1, d - 1, d, d < INT_MAX ? d + 1 : d, INT_MAX - 1, INT_MAX}) ESL_EXPECT(divide(n) == n / d);
    for (int i = 0; i < 2000; ++i) {
      const int n = static_cast<int>(random.next() >> 33);
      ESL_EXPECT(divide(n) == n / d);
    }
  }
}

// Every 16-bit number comes back; a float becomes the nearest one, of two the even one.
template <class T>
void narrow_numbers() {
  const auto number = [](uint32_t bits) { return static_cast<double>(cuda::widen(T{static_cast<uint16_t>(bits)})); };
  const auto back = [](float x) {
    T y;
    cuda::narrow(x, y);
    return static_cast<uint32_t>(y.bits);
  };
  for (uint32_t bits = 0; bits < 1u << 16; ++bits) {
    const double x = number(bits);
    ESL_EXPECT(x != x ? number(back(static_cast<float>(x))) != number(back(static_cast<float>(x)))
                      : back(static_cast<float>(x)) == bits);
  }
  Random random{2};
  for (int i = 0; i < 100000; ++i) {
    const auto bits = static_cast<uint32_t>(random.next() >> 32);
    float x = random.real() * (i % 4 ? 1e5f : 1e-5f);
    if (i % 2) std::memcpy(&x, &bits, 4);
    if (x != x) continue;
    const uint32_t y = back(x);
    if (std::isinf(number(y))) {  // nothing is nearer than the largest number and half a step
      const double largest = number(y - 1), step = std::abs(largest - number(y - 2));
      ESL_EXPECT(std::abs(static_cast<double>(x)) >= std::abs(largest) + step / 2);
      continue;
    }
    const double off = std::abs(number(y) - x);
    for (const uint32_t other : {y - 1, y + 1}) {
      const double there = std::abs(number(other & 0xFFFFu) - x);
      if (other == y - 1 && (y & 0x7FFFu) == 0) continue;  // the neighbour of zero is of the other sign
      ESL_EXPECT(!(there < off) && (there > off || std::isinf(there) || std::isnan(there) || y % 2 == 0));
    }
  }
}

void lanes_of(const Lanes& lanes) {
  const cuda::LaneCount count("test", lanes);
  for (int g = 0; g < count.groups; ++g) {
    cuda::LaneWalk walk(count, g);
    for (int l = 0; l < 64; ++l) {
      const int lane = g * 64 + l;
      const int64_t row = lane < lanes.count() ? lanes.row(lane) : -1;
      ESL_EXPECT(count.row(lane) == row);
      const bool valid = walk.next();
      ESL_EXPECT(valid == (row >= 0) && (!valid || walk.row - 1 == row));
    }
  }
}

void pack_rows(const Lanes& lanes, int64_t channels, int64_t pixels, int planes, float scale) {
  Random random{static_cast<uint64_t>(lanes.B * 7 + channels)};
  const int64_t n = lanes.rows() * channels * pixels, units = lanes.groups() * channels * pixels;
  std::vector<float> rows(size(n)), back = poison(n);
  for (float& x : rows) x = scale * static_cast<float>(random.next() % (1u << planes));
  std::vector<uint64_t> words(size(planes * units), ~0ull), expected = words;
  int32_t broken = 0;
  PackParams p{lanes, channels, pixels, planes, scale, rows.data(), Dtype::f32, words.data(), 1};
  launch_pack(p, &broken, nullptr);
  p.words = expected.data();
  ESL_EXPECT(ESL_DISPATCH(pack, p) && !broken && words == expected);
  launch_unpack({lanes, channels, pixels, planes, scale, words.data(), back.data(), Dtype::f32, 1}, nullptr);
  ESL_EXPECT(back == rows);
  for (const float bad : {scale * 0.5f, -scale, scale * static_cast<float>(1 << planes), poison(1)[0], HUGE_VALF}) {
    if (!n) break;
    std::vector<float> wrong = rows;
    wrong[random.next() % wrong.size()] = bad;
    p.rows = wrong.data();
    broken = 0;
    launch_pack(p, &broken, nullptr);
    ESL_EXPECT(broken == 1);
  }
  std::vector<float> panels = poison(units * 64), expected_panels = panels;
  for (float& x : rows) x = random.real();
  PanelParams t{lanes, channels, pixels, rows.data(), Dtype::f32, panels.data(), 1};
  launch_to_panels(t, nullptr);
  t.panels = expected_panels.data();
  ESL_DISPATCH(to_panels, t);
  ESL_EXPECT(panels == expected_panels);
  t.rows = back.data();
  launch_from_panels(t, nullptr);
  ESL_EXPECT(back == rows);
  // Elements of 16 bits: the same numbers, narrow.
  std::vector<uint16_t> narrow(size(n)), narrow_back(size(n), 0xFFFF), narrow_panels(size(units * 64), 0xFFFF);
  for (uint16_t& x : narrow) x = static_cast<uint16_t>(random.next());
  auto* const narrow_floats = reinterpret_cast<float*>(narrow_panels.data());
  launch_to_panels({lanes, channels, pixels, narrow.data(), Dtype::f16, narrow_floats, 1}, nullptr);
  launch_from_panels({lanes, channels, pixels, narrow_back.data(), Dtype::bf16, narrow_floats, 1}, nullptr);
  ESL_EXPECT(narrow_back == narrow);
}

void select_scores(int64_t n, int64_t count, int kinds, bool largest, bool same_ids, int64_t nans) {
  Random random{static_cast<uint64_t>(n + count)};
  std::vector<float> score(size(n));
  std::vector<int64_t> ids(size(n)), chosen(size(count), -1), expected = chosen;
  for (size_t i = 0; i < score.size(); ++i) {
    score[i] = kinds ? static_cast<float>(random.next() % static_cast<uint64_t>(kinds)) - 1.f : random.real();
    ids[i] = same_ids ? 7 : static_cast<int64_t>(random.next());
  }
  for (int64_t i = 0; i < nans; ++i) score[size(i * 3 % n)] = poison(1)[0];
  Select p{n, count, score.data(), ids.data(), 5, largest, chosen.data(), nullptr, 1};
  Scratch scratch(cuda_select_scratch(n)), own(ESL_DISPATCH(select_scratch, p));
  p.scratch = scratch.data;
  int64_t nan = -1;
  launch_select(p, &nan, nullptr);
  ESL_EXPECT(nan == nans);
  p.scratch = own.data;
  p.chosen = expected.data();
  ESL_EXPECT(ESL_DISPATCH(select, p) == nans);
  if (!nans) ESL_EXPECT(chosen == expected);
}

void transpose(int64_t row_blocks, int64_t col_blocks, double density) {
  Random random{static_cast<uint64_t>(row_blocks + col_blocks)};
  const Weight w(random, row_blocks, col_blocks, 1, 1, density);
  const auto nnzb = static_cast<int64_t>(w.col.size());
  std::vector<int32_t> ccol(size(col_blocks + 1), -1), row_t(w.col.size(), -1), offset_t(w.col.size(), -1);
  TransposeIndex p{row_blocks, col_blocks, w.crow.data(), w.col.data(), ccol.data(), row_t.data(), offset_t.data(),
                   nullptr,    1};
  Scratch scratch(cuda_transpose_index_scratch(p, nnzb));
  p.scratch = scratch.data;
  launch_transpose_index(p, nnzb, nullptr);
  ESL_EXPECT(ccol == w.ccol && row_t == w.row_t && offset_t == w.offset_t);
}

void sample_numbers(int64_t total, int64_t count) {
  std::vector<int64_t> ours(size(count), -1), expected = ours;
  launch_sample(Sample(total, count, 11, ours.data(), 1), nullptr);
  ESL_DISPATCH(sample, Sample(total, count, 11, expected.data(), 1));
  ESL_EXPECT(ours == expected);
}

struct Conv {
  int64_t groups, ci, co, H, W, kh, kw, sh, sw, ph, pw, dh, dw, T, B;
};

// Against the CPU kernels, within what the order of additions makes of float32.
void conv2d(const Conv& k, int64_t bm, int64_t bn, int planes) {
  Random random{static_cast<uint64_t>(k.ci * 31 + k.co + bm * 5 + bn + k.B + planes)};
  const int64_t Ho = (k.H + 2 * k.ph - k.dh * (k.kh - 1) - 1) / k.sh + 1;
  const int64_t Wo = (k.W + 2 * k.pw - k.dw * (k.kw - 1) - 1) / k.sw + 1;
  const ConvShape s{k.groups, k.H, k.W, Ho, Wo, k.kh, k.kw, k.sh, k.sw, k.ph, k.pw, k.dh, k.dw};
  const int64_t rows = k.groups * k.co, cols = k.kh * k.kw * k.ci, channels = k.groups * k.ci;
  const Weight w(random, rows, cols, bm, bn, 0.6, k.groups, k.kh * k.kw);
  const auto nnzb = static_cast<int64_t>(w.col.size());
  const Lanes lanes{k.T, k.B};
  const int64_t G = lanes.groups(), in = G * k.H * k.W * channels, out = G * Ho * Wo * rows;
  const auto panels = [&](int64_t units) {  // zero in padding lanes
    std::vector<float> x(size(units * 64));
    for (size_t i = 0; i < x.size(); ++i) {
      const int64_t lane = static_cast<int64_t>(i / 64) / (units / G) * 64 + static_cast<int64_t>(i % 64);
      if (lane < lanes.count() && lanes.row(lane) >= 0) x[i] = random.real();
    }
    return x;
  };
  const std::vector<float> x = panels(in), grad = panels(out), bias = random.reals(rows);
  std::vector<uint64_t> words(size(planes * in));
  for (int64_t i = 0; i < planes * in; ++i) words[size(i)] = random.next() & lanes.valid(i % in / (in / G));
  const uint64_t* packed = planes ? words.data() : nullptr;
  const float* floats = planes ? nullptr : x.data();
  const float scale = planes ? 0.25f : 1.f;

  std::vector<float> y = poison(out * 64), y_expected = y, grad_x = poison(in * 64), grad_x_expected = grad_x;
  std::vector<float> grad_values = poison(nnzb * bm * bn), grad_values_expected = grad_values;
  const Conv2dCuda p{w.view(), nnzb, s, lanes, packed, planes, scale, floats, Dtype::f32};
  launch_conv2d_forward(p, bias.data(), y.data(), nullptr);
  launch_conv2d_grad_input(p, grad.data(), grad_x.data(), nullptr);
  const int64_t count = conv2d_grad_values_parts(p);
  std::vector<float> parts = poison(count * nnzb * bm * bn);
  launch_conv2d_grad_values(p, grad.data(), grad_values.data(), count > 1 ? parts.data() : nullptr, nullptr);

  Conv2dForward f{w.view(),          s,       lanes, bias.data(), packed, planes, scale, floats,
                  y_expected.data(), nullptr, {},    nullptr,     1};
  Scratch scratch(ESL_DISPATCH(conv2d_forward_scratch, f));
  f.scratch = scratch.data;
  ESL_DISPATCH(conv2d_forward, f);
  Conv2dBackward b{w.view(),
                   s,
                   lanes,
                   grad.data(),
                   packed,
                   planes,
                   scale,
                   floats,
                   grad_x_expected.data(),
                   grad_values_expected.data(),
                   nullptr,
                   nullptr,
                   1};
  Scratch more(ESL_DISPATCH(conv2d_backward_scratch, b));
  b.scratch = more.data;
  ESL_DISPATCH(conv2d_backward, b);
  for (size_t i = 0; i < y.size(); ++i) {
    const int64_t lane = static_cast<int64_t>(i / 64) / (out / G) * 64 + static_cast<int64_t>(i % 64);
    const bool valid = lane < lanes.count() && lanes.row(lane) >= 0;
    ESL_EXPECT(!valid || close(y[i], y_expected[i], 1e-5));
  }
  for (size_t i = 0; i < grad_x.size(); ++i) ESL_EXPECT(close(grad_x[i], grad_x_expected[i], 1e-5));
  for (size_t i = 0; i < grad_values.size(); ++i) ESL_EXPECT(close(grad_values[i], grad_values_expected[i], 1e-5));
  // Padding lanes of a gradient are zero whatever the weights are: 0 times infinity is not.
  std::vector<float> infinite(w.values.size(), HUGE_VALF);
  Conv2dCuda wild = p;
  wild.w.values = infinite.data();
  std::vector<float> wild_grad_x = poison(in * 64);
  launch_conv2d_grad_input(wild, grad.data(), wild_grad_x.data(), nullptr);
  for (size_t i = 0; i < wild_grad_x.size(); ++i)
    if (!(lanes.valid(static_cast<int64_t>(i / 64) / (in / G)) >> (i % 64) & 1)) ESL_EXPECT(wild_grad_x[i] == 0.f);
  // Narrow panels: rounded once from the same sums.
  std::vector<cuda::Half> narrow_y(y.size()), narrow_grad(grad.size()), narrow_grad_x(grad_x.size());
  for (size_t i = 0; i < grad.size(); ++i) cuda::narrow(grad[i], narrow_grad[i]);
  Conv2dCuda narrow = p;
  narrow.dtype = Dtype::f16;
  launch_conv2d_forward(narrow, bias.data(), narrow_y.data(), nullptr);
  launch_conv2d_grad_input(narrow, narrow_grad.data(), narrow_grad_x.data(), nullptr);
  for (size_t i = 0; i < y.size(); ++i) {
    cuda::Half rounded;
    cuda::narrow(y[i], rounded);
    ESL_EXPECT(rounded.bits == narrow_y[i].bits);
  }
  for (size_t i = 0; i < grad_x.size(); ++i) ESL_EXPECT(close(cuda::widen(narrow_grad_x[i]), grad_x[i], 2e-2));
}

void same(const std::vector<float>& actual, const std::vector<float>& expected, double tolerance) {
  ESL_EXPECT(actual.size() == expected.size());
  for (size_t i = 0; i < actual.size(); ++i) ESL_EXPECT(close(actual[i], expected[i], tolerance));
}

void lif(int64_t T, int64_t M, bool hard, Surrogate surrogate, bool detach) {
  Random random{static_cast<uint64_t>(T * 10 + M)};
  std::vector<float> x = random.reals(T * M), v = random.reals(M), grad_s = random.reals(T * M),
                     grad_v = random.reals(M);
  for (float& current : x) current *= 2.f;
  const float tau = 0.6f;
  const LifNeuron neuron{tau, 0.7f, hard, 0.25f};
  std::vector<float> spikes[2], last[2], grad_x[2], first[2], parts = poison(M);
  for (int i = 0; i < 2; ++i) {
    spikes[i] = poison(T * M), last[i] = poison(M), grad_x[i] = poison(T * M), first[i] = poison(M);
    const LifForward f{neuron, T, M, x.data(), M, v.data(), 1, spikes[i].data(), last[i].data(), 1};
    LifBackward b{neuron,
                  surrogate,
                  1.5f,
                  detach,
                  T,
                  M,
                  x.data(),
                  M,
                  v.data(),
                  1,
                  grad_s.data(),
                  grad_v.data(),
                  grad_x[i].data(),
                  first[i].data(),
                  nullptr,
                  nullptr,
                  1};
    if (i == 0) {
      launch_lif_forward(f, &tau, nullptr);
      launch_lif_backward(b, &tau, parts.data(), nullptr);
      continue;
    }
    ESL_DISPATCH(lif_forward, f);
    double grad_tau = 0, sum = 0;
    b.grad_tau = &grad_tau;
    std::vector<float> scratch(size(ESL_DISPATCH(lif_backward_scratch, b)));
    b.scratch = scratch.data();
    ESL_DISPATCH(lif_backward, b);
    for (const float part : parts) sum += part;
    ESL_EXPECT(close(sum, grad_tau, 1e-4));
  }
  ESL_EXPECT(spikes[0] == spikes[1]);
  same(last[0], last[1], 1e-6);
  same(grad_x[0], grad_x[1], 1e-4);
  same(first[0], first[1], 1e-4);
}

// Panels of currents hold NaN in their padding lanes, gradients zero there.
std::vector<float> panels_of(const PanelShape& s, Random& random, float padding) {
  std::vector<float> x(size(s.lanes.groups() * s.units() * 64), padding);
  for (size_t i = 0; i < x.size(); ++i)
    if (s.lanes.valid(static_cast<int64_t>(i / 64) / s.units()) >> (i % 64) & 1) x[i] = 2 * random.real();
  return x;
}

void norm_lif(const PanelShape& s, int64_t pool, bool two, int planes, bool hard, bool batch_stats) {
  Random random{static_cast<uint64_t>(s.lanes.T * 100 + s.lanes.B + s.channels)};
  const int64_t C = s.channels, n = s.lanes.groups() * s.units();
  const float tau = 0.7f;
  const LifNeuron neuron{tau, 0.8f, hard, 0.25f};
  const std::vector<float> current[2] = {panels_of(s, random, poison(1)[0]), panels_of(s, random, poison(1)[0])};
  std::vector<float> mean = random.reals(C), rstd = random.reals(C), a = random.reals(C), b = random.reals(C);
  for (float& r : rstd) r += 1.5f;
  std::vector<uint64_t> residual(size(planes * n));
  for (int64_t i = 0; i < planes * n; ++i) residual[size(i)] = random.next() & s.lanes.valid(i % n / s.units());
  const NormLifInput in{
      s,
      neuron,
      {{current[0].data(), a.data(), b.data()}, {two ? current[1].data() : nullptr, nullptr, nullptr}},
      residual.data(),
      planes,
      0.25f,
      1};
  std::vector<uint64_t> words(size(n), ~0ull), expected_words = words;
  launch_norm_lif_forward({in, words.data()}, &tau, nullptr);
  ESL_DISPATCH(norm_lif_forward, (NormLifForward{in, expected_words.data()}));
  ESL_EXPECT(words == expected_words);

  const std::vector<float> grad = panels_of({s.lanes, s.height / pool, s.width / pool, C}, random, 0.f);
  NormLifBackward p{};
  p.in = in;
  p.surrogate = Surrogate::atan;
  p.width = 1.5f;
  p.words = words.data();
  p.grad = grad.data();
  p.pool = pool;
  p.norm[0] = {mean.data(), rstd.data(), batch_stats, nullptr, nullptr, nullptr};
  const int64_t sites = norm_lif_sites(s), bytes = s.lanes.padded() / 8;
  std::vector<float> g = poison(n * 64), sums = poison(4 * sites), grad_current = current[0];
  launch_norm_lif_backward(p, &tau, g.data(), sums.data(), nullptr);

  std::vector<float> expected_current = poison(n * 64), expected_g = poison(n * 64), gamma = poison(C),
                     beta = poison(C);
  double grad_tau = 0;
  NormLifBackward e = p;
  e.norm[0] = {mean.data(), rstd.data(), batch_stats, expected_current.data(), gamma.data(), beta.data()};
  e.grad_residual = planes ? expected_g.data() : nullptr;
  e.grad_tau = &grad_tau;
  std::vector<double> scratch(size(ESL_DISPATCH(norm_lif_backward_scratch, e)));
  e.scratch = scratch.data();
  ESL_DISPATCH(norm_lif_backward, e);
  if (planes) same(g, expected_g, 1e-4);
  std::vector<float> coefficients(size(4 * C));
  double sum_tau = 0;
  for (int64_t i = 0; i < sites; ++i) sum_tau += sums[size(3 * sites + i)];
  ESL_EXPECT(close(sum_tau, grad_tau, 1e-3));
  for (int64_t c = 0; c < C; ++c) {
    double of_g = 0, of_product = 0;
    for (int64_t site = 0; site < sites; ++site)
      if (site / bytes % C == c) of_g += sums[size(site)], of_product += sums[size(sites + site)];
    const double r = rstd[size(c)], count = static_cast<double>(s.lanes.rows() * s.pixels());
    ESL_EXPECT(close(of_product * r, gamma[size(c)], 1e-3) && close(of_g, beta[size(c)], 1e-3));
    coefficients[size(c)] = a[size(c)];
    if (!batch_stats) continue;
    coefficients[size(C + c)] = static_cast<float>(of_g / count);
    coefficients[size(2 * C + c)] = mean[size(c)];
    coefficients[size(3 * C + c)] = static_cast<float>(r * r * of_product / count);
  }
  launch_norm_lif_spread(s, g.data(), grad_current.data(), coefficients.data(), nullptr);
  same(grad_current, expected_current, 1e-3);
}

void panel_stats(const PanelShape& s) {
  Random random{3};
  const std::vector<float> current = panels_of(s, random, poison(1)[0]);
  std::vector<double> stats(size(2 * s.channels), -1), expected = stats, scratch(size(cuda_panel_stats_scratch(s)));
  PanelStats p{s, current.data(), stats.data(), scratch.data(), 1};
  launch_panel_stats(p, Dtype::f32, nullptr);
  p.stats = expected.data();
  scratch.assign(size(ESL_DISPATCH(panel_stats_scratch, p)), 0);
  p.scratch = scratch.data();
  ESL_DISPATCH(panel_stats, p);
  for (size_t i = 0; i < stats.size(); ++i) ESL_EXPECT(close(stats[i], expected[i], 1e-6));
}

void pool(const PoolAxis& y, const PoolAxis& x, int64_t channels) {
  Random random{9};
  const int64_t groups = 2;
  const Pool p{groups, channels, y, x, 1};
  const int64_t in = groups * p.pixels() * channels, out = groups * p.windows() * channels;
  std::vector<uint64_t> words(size(in)), sums[2], any[2];
  for (uint64_t& word : words) word = random.next() & random.next();
  const std::vector<float> grad = random.reals(out * 64);
  std::vector<float> grad_x[2], most[2];
  for (int i = 0; i < 2; ++i) {
    sums[i].assign(size(4 * out), ~0ull), any[i].assign(size(out), ~0ull);
    grad_x[i] = poison(in * 64), most[i] = poison(in * 64);
    const AvgPool avg{p, 1, 4, words.data(), sums[i].data()};
    const AvgPoolBackward avg_back{p, 3.f, grad.data(), grad_x[i].data()};
    const MaxPool max{p, words.data(), any[i].data()};
    const MaxPoolBackward max_back{p, words.data(), grad.data(), most[i].data()};
    if (i == 0) {
      launch_avg_pool(avg, nullptr);
      launch_avg_pool_backward(avg_back, Dtype::f32, nullptr);
      launch_max_pool(max, nullptr);
      launch_max_pool_backward(max_back, Dtype::f32, nullptr);
    } else {
      ESL_DISPATCH(avg_pool, avg);
      ESL_DISPATCH(avg_pool_backward, avg_back);
      ESL_DISPATCH(max_pool, max);
      ESL_DISPATCH(max_pool_backward, max_back);
    }
  }
  ESL_EXPECT(sums[0] == sums[1] && any[0] == any[1]);
  same(grad_x[0], grad_x[1], 1e-6);
  same(most[0], most[1], 1e-6);
  const Lanes lanes{3, 40};
  std::vector<float> mean[2] = {poison(lanes.rows() * channels), poison(lanes.rows() * channels)};
  GlobalAvgPool global{lanes, channels, p.pixels(), 1, 0.5f, words.data(), mean[0].data(), Dtype::f32, 1};
  launch_global_avg_pool(global, nullptr);
  global.rows = mean[1].data();
  ESL_DISPATCH(global_avg_pool, global);
  same(mean[0], mean[1], 1e-6);
}

// Against the CPU kernel, within what the order of additions makes; a call of rows is one of spikes, unpacked.
void block_score(int64_t rows, int64_t cols, int64_t bm, int64_t bn, int64_t first, int64_t count) {
  Random random{static_cast<uint64_t>(rows * 7 + cols + bm)};
  std::vector<ScoreCall> calls;
  std::vector<ScoreCallCuda> on_gpu;
  std::vector<float> scale;
  std::vector<std::vector<uint64_t>> words;
  std::vector<std::vector<float>> grads, floats;
  const Lanes of_calls[] = {{2, 5}, {1, 70}, {3, 8}, {1, 0}};
  for (const Lanes& lanes : of_calls) {
    words.emplace_back(size(lanes.groups() * cols));
    for (size_t i = 0; i < words.back().size(); ++i)
      words.back()[i] = random.next() & random.next() & lanes.valid(static_cast<int64_t>(i) / cols);
    grads.push_back(random.reals(lanes.rows() * rows));
    floats.emplace_back(size(lanes.rows() * cols));
    for (int64_t lane = 0; lane < lanes.count(); ++lane)
      for (int64_t c = 0; c < cols; ++c)
        if (const int64_t row = lanes.row(lane); row >= 0)
          floats.back()[size(row * cols + c)] =
              static_cast<float>(words.back()[size(lane / 64 * cols + c)] >> (lane % 64) & 1);
    scale.push_back(0.25f * static_cast<float>(scale.size() + 1));
    calls.push_back({lanes, scale.back(), words.back().data(), grads.back().data(), Dtype::f32});
  }
  for (size_t i = 0; i < calls.size(); ++i) {
    const bool as_rows = i % 2;
    const Lanes lanes = as_rows ? Lanes{1, calls[i].lanes.rows()} : calls[i].lanes;
    const void* const x = as_rows ? static_cast<const void*>(floats[i].data()) : words[i].data();
    const auto address = [](const void* p) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(p)); };
    on_gpu.push_back({address(x), address(grads[i].data()), lanes.B, lanes.count(), as_rows ? 0 : 1});
  }
  const int64_t col_blocks = (cols + bn - 1) / bn, n = static_cast<int64_t>(calls.size());
  std::vector<float> scores = poison(count * col_blocks), expected = scores;
  const BlockScoreCuda p{rows, cols, bm,         bn,    on_gpu.data(), scale.data(),
                         n,    70,   Dtype::f32, first, count,         scores.data()};
  launch_block_score(p, nullptr);
  BlockScore e{rows, cols, bm, bn, calls.data(), n, first, count, expected.data(), nullptr, 1};
  Scratch scratch(ESL_DISPATCH(block_score_scratch, e));
  e.scratch = scratch.data;
  ESL_DISPATCH(block_score, e);
  same(scores, expected, 1e-5);
  // Narrow gradients: those of the same numbers, wide.
  std::vector<std::vector<cuda::Bf16>> narrow;
  for (size_t i = 0; i < grads.size(); ++i) {
    narrow.emplace_back(grads[i].size());
    for (size_t k = 0; k < grads[i].size(); ++k) {
      cuda::narrow(grads[i][k], narrow[i][k]);
      grads[i][k] = cuda::widen(narrow[i][k]);
    }
  }
  launch_block_score(p, nullptr);
  expected = scores;
  for (size_t i = 0; i < narrow.size(); ++i)
    on_gpu[i].grad = static_cast<int64_t>(reinterpret_cast<intptr_t>(narrow[i].data()));
  BlockScoreCuda of_narrow = p;
  of_narrow.dtype = Dtype::bf16;
  launch_block_score(of_narrow, nullptr);
  ESL_EXPECT(scores == expected);
}

void temporal(int64_t rows, int64_t cols, int64_t bm, int64_t bn, int64_t N, double density, int times) {
  Random random{static_cast<uint64_t>(rows * 31 + cols * 17 + bm * 5 + bn + N)};
  Weight w(random, rows, cols, bm, bn, density);
  w.each([&](size_t p, int64_t r, int64_t) {
    if (r >= 0) w.values[p] = 0.4f * w.values[p] + 0.2f;
  });
  std::vector<float> z(size(N * cols)), sorted(z.size());
  std::vector<int64_t> order(z.size());
  for (float& one : z) {
    const double at = times ? static_cast<double>(random.next() % static_cast<uint64_t>(times)) : 5 * random.uniform();
    one = random.uniform() < 0.1 ? std::numeric_limits<float>::infinity() : static_cast<float>(1 + at);
  }
  for (int64_t n = 0; n < N; ++n) {
    const auto first = order.begin() + n * cols;
    std::iota(first, first + cols, 0);
    std::stable_sort(first, first + cols,
                     [&](int64_t a, int64_t b) { return z[size(n * cols + a)] < z[size(n * cols + b)]; });
    for (int64_t i = 0; i < cols; ++i) sorted[size(n * cols + i)] = z[size(n * cols + first[i])];
  }
  const std::vector<float> grad = random.reals(N * rows);
  std::vector<float> z_out[2], slope[2], grad_z[2], grad_values[2];
  for (int i = 0; i < 2; ++i) {
    z_out[i] = poison(N * rows), slope[i] = poison(N * rows), grad_z[i] = poison(N * cols);
    grad_values[i] = poison(static_cast<int64_t>(w.values.size()));
    TemporalForward f{w.view(), N, (i ? z : sorted).data(), z_out[i].data(), slope[i].data(), nullptr, nullptr, 1};
    // The times of one kernel for both, so that an input just before a spike is so for both.
    TemporalBackward b{
        w.view(), N, grad.data(), z.data(), z_out[0].data(), slope[0].data(), grad_z[i].data(), grad_values[i].data(),
        nullptr,  1};
    if (i == 0) {
      launch_temporal_forward(f, order.data(), nullptr);
      launch_temporal_backward(b, static_cast<int64_t>(w.col.size()), nullptr);
      continue;
    }
    Scratch scratch(ESL_DISPATCH(temporal_forward_scratch, f));
    f.scratch = scratch.data;
    ESL_EXPECT(ESL_DISPATCH(temporal_forward, f) == 0);
    Scratch more(ESL_DISPATCH(temporal_backward_scratch, b));
    b.scratch = more.data;
    ESL_DISPATCH(temporal_backward, b);
  }
  for (size_t i = 0; i < z_out[0].size(); ++i) {
    ESL_EXPECT(std::isfinite(z_out[0][i]) == std::isfinite(z_out[1][i]));
    if (std::isfinite(z_out[0][i])) ESL_EXPECT(close(z_out[0][i], z_out[1][i], 1e-6));
  }
  same(slope[0], slope[1], 1e-6);
  // Bounded by the sum of magnitudes: slopes may be small, and their inverses large.
  for (int k = 0; k < 2; ++k) {
    const std::vector<float>&actual = k ? grad_z[0] : grad_values[0], &expected = k ? grad_z[1] : grad_values[1];
    float largest = 0.f;
    for (const float x : expected) largest = std::max(largest, std::abs(x));
    for (size_t i = 0; i < actual.size(); ++i) ESL_EXPECT(std::abs(actual[i] - expected[i]) <= 1e-5f * largest);
  }
}

// Sizes that do not fit are said before anything is launched.
void refuses(const char* what, const std::function<void()>& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    ESL_EXPECT(std::strstr(error.what(), what));
    return;
  }
  ESL_EXPECT(!"no exception");
}

}  // namespace

void run() {
  division();
  narrow_numbers<cuda::Half>();
  narrow_numbers<cuda::Bf16>();
  for (const int64_t T : {1, 2, 7})
    for (const int64_t B : {1, 5, 8, 12, 33, 64, 70}) lanes_of({T, B});
  for (const int64_t channels : {1, 3, 33, 130})
    for (const int64_t pixels : {1, 6})
      for (const int64_t B : {0, 1, 12, 70}) {
        pack_rows({3, B}, channels, pixels, 1, 1.f);
        pack_rows({1, B}, channels, pixels, 3, 0.25f);
      }
  pack_rows({2, 5}, 4, 3, 4, 2.f);
  for (const int64_t n : {1, 63, 2048, 2049, 9000})
    for (const int kinds : {0, 1, 3})
      for (const bool largest : {false, true}) {
        for (const int64_t count : {int64_t{0}, n / 3, n - 1, n}) select_scores(n, count, kinds, largest, false, 0);
        select_scores(n, n / 2, kinds, largest, true, 0);
      }
  select_scores(5000, 100, 0, true, false, 3);
  select_scores(0, 0, 0, true, false, 0);
  for (const double density : {0., 0.3, 1.}) transpose(37, 21, density);
  transpose(1, 3000, 0.2);
  transpose(300, 1, 0.2);
  for (const int64_t count : {0, 1, 255, 1000}) sample_numbers(1000, count);
  const Conv convs[] = {{1, 7, 9, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 3, 30},  {1, 6, 10, 5, 7, 3, 3, 1, 1, 1, 1, 1, 1, 2, 5},
                        {1, 5, 6, 6, 7, 3, 2, 2, 3, 1, 0, 1, 2, 1, 70},  {3, 4, 5, 4, 5, 2, 3, 1, 2, 1, 1, 2, 1, 2, 9},
                        {7, 1, 1, 4, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 12},  {1, 3, 4, 2, 3, 2, 2, 2, 2, 3, 4, 1, 1, 1, 7},
                        {1, 40, 33, 2, 2, 2, 1, 1, 1, 0, 0, 1, 1, 1, 64}};
  const int64_t blocks[][2] = {{1, 1}, {4, 4}, {2, 8}, {16, 1}, {16, 16}};
  for (const Conv& conv : convs)
    for (const auto& block : blocks)
      for (const int planes : {0, 1, 3}) conv2d(conv, block[0], block[1], planes);
  for (const bool hard : {false, true})
    for (const auto surrogate : {Surrogate::triangle, Surrogate::rectangle, Surrogate::sigmoid, Surrogate::atan})
      lif(5, 300, hard, surrogate, hard);
  lif(1, 1, true, Surrogate::triangle, false);
  for (const int64_t B : {1, 5, 12, 33})
    for (const int64_t T : {1, 3, 10}) {
      norm_lif({{T, B}, 3, 2, 3}, 1, T == 3, T == 1 ? 0 : 2, T != 10, B != 12);
      panel_stats({{T, B}, 3, 2, 5});
    }
  panel_stats({{1, 3}, 265, 265, 1});  // several panels for a thread
  norm_lif({{3, 5}, 5, 4, 2}, 2, true, 1, false, true);
  pool({6, 3, 2, 2, 0, 1}, {7, 3, 2, 2, 0, 1}, 5);
  pool({6, 3, 3, 2, 1, 1}, {7, 4, 3, 2, 1, 1}, 3);
  pool({5, 3, 2, 1, 0, 2}, {6, 2, 2, 4, 0, 1}, 130);
  for (const auto& block : {std::array<int64_t, 2>{1, 1}, {2, 4}, {4, 4}, {8, 1}, {16, 128}, {128, 2}})
    for (const int64_t cols : {1, 130}) {
      const int64_t rows = 37, blocks = (rows + block[0] - 1) / block[0];
      block_score(rows, cols, block[0], block[1], 0, blocks);
      block_score(rows, cols, block[0], block[1], blocks / 2, blocks - blocks / 2);
    }
  for (const int times : {0, 3}) {
    for (const int64_t bm : {1, 4, 8})
      for (const int64_t bn : {1, 2, 16}) temporal(13, 41, bm, bn, 5, 0.5, times);
    temporal(40, 300, 4, 4, 33, 0.2, times);
    temporal(1, 1, 1, 1, 1, 1.0, times);
    temporal(9, 10, 4, 4, 0, 0.5, times);
    temporal(9, 10, 4, 4, 3, 0.0, times);
  }
  refuses("block_score: expected at most 2147418111 lanes", [] {
    launch_block_score({1, 1, 1, 1, nullptr, nullptr, 1, int64_t{1} << 31, Dtype::f32, 0, 1, nullptr}, nullptr);
  });
  refuses("temporal: expected at most 2147418111 inputs", [] {
    TemporalForward p{};
    p.w.cols = int64_t{1} << 31;
    launch_temporal_forward(p, nullptr, nullptr);
  });
  refuses("norm_lif: expected at most 2147418111 lanes",
          [] { launch_norm_lif_spread({{1, int64_t{1} << 31}, 1, 1, 1}, nullptr, nullptr, nullptr, nullptr); });
  ESL_EXPECT(cuda_transpose_index_scratch({}, int64_t{1} << 30) >= int64_t{1} << 33);
  refuses("pack: expected at most 2147418111 lanes",
          [] { launch_pack({{1 << 20, 1 << 20}, 1, 1, 1, 1.f, nullptr, Dtype::f32, nullptr, 1}, nullptr, nullptr); });
  refuses("unpack: expected at most 2147418111 elements of a sample",
          [] { launch_unpack({{1, 1}, 1 << 20, 1 << 20, 1, 1.f, nullptr, nullptr, Dtype::f32, 1}, nullptr); });
  refuses("to_panels: expected at most 2^31 - 1 blocks of threads",
          [] { launch_to_panels({{1, 1 << 20}, 1 << 20, 1 << 10, nullptr, Dtype::f32, nullptr, 1}, nullptr); });
}
