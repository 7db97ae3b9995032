#include "esl/linear.h"
#include "esl/pack.h"
#include "random.h"
#include "testing.h"

using namespace esl;

namespace {

// A random block-sparse weight, its index both ways, and the same weight dense. Overhang entries hold NaN.
struct Weight {
  int64_t rows, cols, bm, bn;
  std::vector<int32_t> crow, col, ccol, row_t, offset_t;
  std::vector<float> values;
  std::vector<double> dense;

  Weight(Random& random, int64_t rows, int64_t cols, int64_t bm, int64_t bn, double density)
      : rows(rows), cols(cols), bm(bm), bn(bn), crow{0}, ccol{0}, dense(static_cast<size_t>(rows * cols)) {
    const int64_t rbs = (rows + bm - 1) / bm, cbs = (cols + bn - 1) / bn;
    std::vector<int32_t> at(static_cast<size_t>(rbs * cbs), -1);
    for (int64_t rb = 0; rb < rbs; ++rb) {
      for (int64_t cb = 0; cb < cbs; ++cb) {
        if (random.uniform() >= density) continue;
        at[static_cast<size_t>(rb * cbs + cb)] = static_cast<int32_t>(col.size());
        col.push_back(static_cast<int32_t>(cb));
        for (int64_t i = 0; i < bm * bn; ++i) {
          const int64_t r = rb * bm + i / bn, c = cb * bn + i % bn;
          const bool valid = r < rows && c < cols;
          values.push_back(valid ? random.real() : poison(1)[0]);
          if (valid) dense[static_cast<size_t>(r * cols + c)] = values.back();
        }
      }
      crow.push_back(static_cast<int32_t>(col.size()));
    }
    for (int64_t cb = 0; cb < cbs; ++cb) {
      for (int64_t rb = 0; rb < rbs; ++rb)
        if (const int32_t p = at[static_cast<size_t>(rb * cbs + cb)]; p >= 0) {
          row_t.push_back(static_cast<int32_t>(rb));
          offset_t.push_back(p);
        }
      ccol.push_back(static_cast<int32_t>(row_t.size()));
    }
  }
  BlockSparse view() const {
    return {rows, cols, bm, bn, crow.data(), col.data(), ccol.data(), row_t.data(), offset_t.data(), values.data()};
  }
};

// Exactly as many bytes as asked for, aligned as the arena's are: one step further is the sanitizer's.
struct Scratch {
  float* data;
  explicit Scratch(int64_t bytes)
      : data(static_cast<float*>(aligned_alloc(64, static_cast<size_t>((bytes + 127) / 64 * 64)))) {
    std::memset(data, 0xFF, static_cast<size_t>(bytes));
  }
  ~Scratch() { free(data); }
};

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
  for (int64_t rb = 0; rb * bm < rows; ++rb)
    for (int32_t p = w.crow[static_cast<size_t>(rb)]; p < w.crow[static_cast<size_t>(rb) + 1]; ++p)
      for (int64_t i = 0; i < bm * bn; ++i) {
        const int64_t r = rb * bm + i / bn, c = w.col[static_cast<size_t>(p)] * bn + i % bn;
        double sum = 0;
        for (int64_t n = 0; n < N && r < rows && c < cols; ++n) sum += at(grad, n, rows, r) * at(x, n, cols, c);
        ESL_EXPECT(close(grad_values[static_cast<size_t>(p * bm * bn + i)], sum, 1e-4));
      }
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
