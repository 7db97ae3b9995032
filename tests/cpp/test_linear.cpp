#include "esl/linear.h"
#include "esl/pack.h"
#include "random.h"
#include "testing.h"
#include "weight.h"

using namespace esl;

namespace {

void check(int64_t rows, int64_t cols, int64_t bm, int64_t bn, int64_t T, int64_t B, bool spikes, SpikeKernel kernel) {
  Random random{static_cast<uint64_t>(rows * 31 + cols * 17 + bm * 5 + bn + B)};
  const Weight w(random, rows, cols, bm, bn, 0.4);
  const Lanes lanes{T, B};
  const int64_t N = lanes.rows();
  std::vector<float> x = spikes ? random.spikes(N * cols, 0.3) : random.reals(N * cols);
  std::vector<float> bias = random.reals(rows), grad = random.reals(N * rows), y = poison(N * rows);
  std::vector<uint64_t> words(static_cast<size_t>(lanes.groups() * cols));
  if (spikes) ESL_DISPATCH(pack, (PackParams{lanes, cols, 1, 1, 1.f, x.data(), Dtype::f32, words.data(), 2}));
  const uint64_t* packed = spikes ? words.data() : nullptr;

  LinearForward f{w.view(),
                  lanes,
                  bias.data(),
                  packed,
                  1,
                  1.f,
                  {x.data(), Dtype::f32, false},
                  {y.data(), Dtype::f32, false},
                  kernel,
                  nullptr,
                  2};
  {
    Scratch scratch(ESL_DISPATCH(linear_forward_scratch, f));
    f.scratch = scratch.data;
    ESL_DISPATCH(linear_forward, f);
  }
  std::vector<float> grad_x = poison(N * cols), grad_values = poison(static_cast<int64_t>(w.values.size()));
  std::vector<float> grad_bias = poison(rows);
  LinearBackward b{w.view(),
                   lanes,
                   {grad.data(), Dtype::f32, false},
                   packed,
                   1,
                   1.f,
                   {x.data(), Dtype::f32, false},
                   {grad_x.data(), Dtype::f32, false},
                   grad_values.data(),
                   grad_bias.data(),
                   nullptr,
                   2};
  {
    Scratch scratch(ESL_DISPATCH(linear_backward_scratch, b));
    b.scratch = scratch.data;
    ESL_DISPATCH(linear_backward, b);
  }

  const auto at = [](const auto& m, int64_t i, int64_t n, int64_t j) { return m[static_cast<size_t>(i * n + j)]; };
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = bias[static_cast<size_t>(r)];
      for (int64_t c = 0; c < cols; ++c) sum += at(w.dense, r, cols, c) * at(x, n, cols, c);
      ESL_EXPECT(close(at(y, n, rows, r), sum, 1e-4));
    }
    for (int64_t c = 0; c < cols; ++c) {
      double sum = 0;
      for (int64_t r = 0; r < rows; ++r) sum += at(w.dense, r, cols, c) * at(grad, n, rows, r);
      ESL_EXPECT(close(at(grad_x, n, cols, c), sum, 1e-4));
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t n = 0; n < N; ++n) sum += at(grad, n, rows, r);
    ESL_EXPECT(close(grad_bias[static_cast<size_t>(r)], sum, 1e-4));
  }
  w.each([&](size_t at_values, int64_t r, int64_t c) {
    double sum = 0;
    for (int64_t n = 0; n < N && r >= 0; ++n) sum += at(grad, n, rows, r) * at(x, n, cols, c);
    ESL_EXPECT(close(grad_values[at_values], sum, 1e-4));
  });
}

}  // namespace

void run() {
  const int64_t blocks[][2] = {{1, 1}, {1, 4}, {2, 2}, {4, 1}, {4, 4}, {8, 2}, {16, 16}, {32, 8}};
  const int64_t shapes[][4] = {{1, 1, 1, 1}, {37, 51, 3, 21}, {18, 220, 1, 70}};  // rows, cols, T, B
  for (const auto& [rows, cols, T, B] : shapes)
    for (const auto& [bm, bn] : blocks) {
      check(rows, cols, bm, bn, T, B, false, SpikeKernel::automatic);
      for (const SpikeKernel kernel : {SpikeKernel::automatic, SpikeKernel::masked, SpikeKernel::events})
        check(rows, cols, bm, bn, T, B, true, kernel);
    }
  // Panels beyond the cache, read in pieces: many channels in for forward, many out for the gradient of x.
  for (const int which : {2, 4, 6}) {
    const auto& [bm, bn] = blocks[which];
    check(6, 2100, bm, bn, 1, 130, false, SpikeKernel::automatic);
    check(2100, 6, bm, bn, 1, 130, true, SpikeKernel::automatic);
  }
  check(5, 9, 4, 4, 2, 0, true, SpikeKernel::automatic);  // an empty batch
}
