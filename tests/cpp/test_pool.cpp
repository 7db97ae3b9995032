#include "esl/pool.h"
#include "random.h"
#include "testing.h"

using namespace esl;

static size_t at(int64_t i) { return static_cast<size_t>(i); }

static std::vector<uint64_t> random_words(Random& random, int64_t n) {
  std::vector<uint64_t> words(at(n));
  for (uint64_t& word : words) word = random.next() & random.next();
  return words;
}

// f(window, pixel) for each pixel of each window, row-major in both.
template <class F>
static void for_windows(const Pool& p, F f) {
  for (int64_t oy = 0; oy < p.y.windows; ++oy)
    for (int64_t ox = 0; ox < p.x.windows; ++ox)
      for (int64_t ky = 0; ky < p.y.kernel; ++ky)
        for (int64_t kx = 0; kx < p.x.kernel; ++kx) {
          const int64_t y = oy * p.y.stride - p.y.padding + ky * p.y.dilation;
          const int64_t x = ox * p.x.stride - p.x.padding + kx * p.x.dilation;
          if (y >= 0 && y < p.y.size && x >= 0 && x < p.x.size) f(oy * p.x.windows + ox, y * p.x.size + x);
        }
}

struct Case {
  Random random{11};
  Pool pool;
  int64_t windows, pixels;

  explicit Case(const Pool& p)
      : pool(p), windows(p.groups * p.windows() * p.channels), pixels(p.groups * p.pixels() * p.channels) {}

  // f(word of a window, word of a pixel, bit), where words are counted [groups, windows or pixels, channels].
  template <class F>
  void each(F f) const {
    for_windows(pool, [&](int64_t window, int64_t pixel) {
      for (int64_t g = 0; g < pool.groups; ++g)
        for (int64_t c = 0; c < pool.channels; ++c)
          for (int bit = 0; bit < 64; ++bit)
            f((g * pool.windows() + window) * pool.channels + c, (g * pool.pixels() + pixel) * pool.channels + c, bit);
    });
  }

  void average(int planes, int sum_planes) {
    const std::vector<uint64_t> words = random_words(random, planes * pixels);
    std::vector<uint64_t> sums(at(sum_planes * windows), ~0ull);
    ESL_DISPATCH(avg_pool, (AvgPool{pool, planes, sum_planes, words.data(), sums.data()}));
    std::vector<uint64_t> expected(at(windows * 64));
    each([&](int64_t window, int64_t pixel, int bit) {
      for (int p = 0; p < planes; ++p)
        expected[at(window * 64 + bit)] += (words[at(p * pixels + pixel)] >> bit & 1) << p;
    });
    for (int64_t i = 0; i < windows * 64; ++i) {
      uint64_t sum = 0;
      for (int p = 0; p < sum_planes; ++p) sum |= (sums[at(p * windows + i / 64)] >> (i % 64) & 1) << p;
      ESL_EXPECT(sum == expected[at(i)]);
    }
  }

  void average_backward(float divisor) {
    const std::vector<float> grad = random.reals(windows * 64);
    std::vector<float> grad_x = poison(pixels * 64);
    ESL_DISPATCH(avg_pool_backward, (AvgPoolBackward{pool, divisor, grad.data(), grad_x.data()}));
    std::vector<double> expected(at(pixels * 64));
    each([&](int64_t window, int64_t pixel, int bit) {
      expected[at(pixel * 64 + bit)] += static_cast<double>(grad[at(window * 64 + bit)]) / divisor;
    });
    for (int64_t i = 0; i < pixels * 64; ++i) ESL_EXPECT(close(grad_x[at(i)], expected[at(i)], 1e-6));
  }

  void maximum() {
    const std::vector<uint64_t> words = random_words(random, pixels);
    std::vector<uint64_t> out(at(windows), ~0ull), expected(at(windows));
    ESL_DISPATCH(max_pool, (MaxPool{pool, words.data(), out.data()}));
    std::vector<int64_t> winner(at(windows * 64), -1);
    each([&](int64_t window, int64_t pixel, int bit) {
      expected[at(window)] |= words[at(pixel)];
      int64_t& first = winner[at(window * 64 + bit)];
      const bool spikes = words[at(pixel)] >> bit & 1, spiked = first >= 0 && (words[at(first)] >> bit & 1);
      if (first < 0 || (spikes && !spiked)) first = pixel;
    });
    ESL_EXPECT(out == expected);

    const std::vector<float> grad = random.reals(windows * 64);
    std::vector<float> grad_x = poison(pixels * 64);
    ESL_DISPATCH(max_pool_backward, (MaxPoolBackward{pool, words.data(), grad.data(), grad_x.data()}));
    std::vector<double> expected_grad(at(pixels * 64));
    for (int64_t i = 0; i < windows * 64; ++i)
      if (winner[at(i)] >= 0) expected_grad[at(winner[at(i)] * 64 + i % 64)] += grad[at(i)];
    for (int64_t i = 0; i < pixels * 64; ++i) ESL_EXPECT(close(grad_x[at(i)], expected_grad[at(i)], 1e-6));
  }
};

static void global(int64_t T, int64_t B, int64_t C, int64_t P, int planes) {
  Random random{3};
  const Lanes lanes{T, B};
  const std::vector<uint64_t> words = random_words(random, planes * lanes.groups() * P * C);
  std::vector<float> rows = poison(T * B * C);
  ESL_DISPATCH(global_avg_pool, (GlobalAvgPool{lanes, C, P, planes, 0.5f, words.data(), rows.data(), Dtype::f32, 2}));
  for (int64_t lane = 0; lane < lanes.count(); ++lane)
    for (int64_t c = 0; lanes.row(lane) >= 0 && c < C; ++c) {
      double sum = 0;
      for (int p = 0; p < planes; ++p)
        for (int64_t pixel = 0; pixel < P; ++pixel)
          sum += static_cast<double>(
              (words[at(((p * lanes.groups() + lane / 64) * P + pixel) * C + c)] >> (lane % 64) & 1) << p);
      ESL_EXPECT(close(rows[at(lanes.row(lane) * C + c)], 0.5 * sum / static_cast<double>(P), 1e-6));
    }
}

void run() {
  for (const int64_t C : {1, 17, 70})
    for (const int64_t groups : {0, 1, 2}) {
      // size, windows, kernel, stride, padding, dilation
      const PoolAxis halves{6, 3, 2, 2, 0, 1}, overlapping{7, 4, 3, 2, 1, 1}, sparse{5, 2, 1, 3, 0, 1};
      const PoolAxis cut{6, 3, 3, 2, 0, 1}, dilated{7, 5, 2, 1, 1, 4};
      Case({groups, C, halves, overlapping, 2}).average(1, 3);
      Case({groups, C, halves, sparse, 2}).average(3, 4);
      Case({groups, C, overlapping, cut, 2}).average(1, 4);
      Case({groups, C, overlapping, cut, 2}).average_backward(9.f);
      Case({groups, C, sparse, halves, 2}).average_backward(2.f);
      Case({groups, C, halves, halves, 2}).maximum();
      Case({groups, C, overlapping, dilated, 2}).maximum();
      Case({groups, C, dilated, cut, 2}).maximum();
      Case({groups, C, sparse, overlapping, 2}).maximum();
    }
  for (const int64_t B : {0, 1, 8, 21, 70}) {
    global(3, B, 5, 6, 1);
    global(1, B, 33, 1, 3);
  }
}
