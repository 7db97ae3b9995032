#include <algorithm>
#include <numeric>

#include "esl/temporal.h"
#include "random.h"
#include "testing.h"
#include "weight.h"

using namespace esl;

namespace {

struct Solution {
  double z = std::numeric_limits<double>::infinity(), slope = 0;
  std::vector<size_t> causal;
};

// One neuron by the definition: the first inputs in time whose solution comes before the next.
Solution solve(const float* z, const double* w, size_t n) {
  std::vector<size_t> order;
  for (size_t i = 0; i < n; ++i)
    if (std::isfinite(z[i]) && w[i] != 0) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return z[a] < z[b]; });
  Solution s;
  double weight = 0, moment = 0;
  for (size_t k = 0; k < order.size(); ++k) {
    weight += w[order[k]], moment += w[order[k]] * static_cast<double>(z[order[k]]);
    const double next = k + 1 < order.size() ? static_cast<double>(z[order[k + 1]]) : s.z;
    if (weight > 1 && moment / (weight - 1) < next) {
      s.z = moment / (weight - 1), s.slope = weight - 1;
      order.resize(k + 1);
      s.causal = order;
      return s;
    }
  }
  return s;
}

void check(int64_t rows, int64_t cols, int64_t bm, int64_t bn, int64_t N, double density, int times, int threads) {
  Random random{static_cast<uint64_t>(rows * 31 + cols * 17 + bm * 5 + bn + N)};
  Weight w(random, rows, cols, bm, bn, density);
  w.each([&](size_t p, int64_t r, int64_t c) {
    if (r >= 0) w.dense[static_cast<size_t>(r * cols + c)] = w.values[p] = 0.4f * w.values[p] + 0.2f;
  });
  std::vector<float> z(static_cast<size_t>(N * cols)), grad = random.reals(N * rows);
  for (float& one : z) {
    const double at = 1 + 5 * random.uniform();
    const auto time = static_cast<float>(times ? 1 + std::floor((at - 1) / 5 * times) / times * 5 : at);
    one = random.uniform() < 0.1 ? std::numeric_limits<float>::infinity() : time;
  }
  std::vector<float> z_out = poison(N * rows), slope = poison(N * rows);
  int64_t visits = -1;
  TemporalForward f{w.view(), N, z.data(), z_out.data(), slope.data(), &visits, nullptr, threads};
  {
    Scratch scratch(ESL_DISPATCH(temporal_forward_scratch, f));
    f.scratch = scratch.data;
    ESL_EXPECT(ESL_DISPATCH(temporal_forward, f) == 0);
  }
  ESL_EXPECT(visits >= 0 && visits <= N * cols);
  std::vector<float> grad_z = poison(N * cols), grad_values = poison(static_cast<int64_t>(w.values.size()));
  TemporalBackward b{w.view(),           N,       grad.data(), z.data(), z_out.data(), slope.data(), grad_z.data(),
                     grad_values.data(), nullptr, threads};
  {
    Scratch scratch(ESL_DISPATCH(temporal_backward_scratch, b));
    b.scratch = scratch.data;
    ESL_DISPATCH(temporal_backward, b);
  }
  std::vector<double> expected_z(z.size()), expected_w(static_cast<size_t>(rows * cols)), size_z(z.size()),
      size_w(expected_w.size());
  for (int64_t n = 0; n < N; ++n)
    for (int64_t r = 0; r < rows; ++r) {
      const Solution s =
          solve(&z[static_cast<size_t>(n * cols)], &w.dense[static_cast<size_t>(r * cols)], static_cast<size_t>(cols));
      const auto at = static_cast<size_t>(n * rows + r);
      ESL_EXPECT(std::isfinite(s.z) == std::isfinite(z_out[at]));
      ESL_EXPECT(close(slope[at], s.slope, 1e-5));
      if (!std::isfinite(s.z)) continue;
      ESL_EXPECT(std::abs(static_cast<double>(z_out[at]) - s.z) <= 1e-6 * s.z);
      const double g = static_cast<double>(grad[at]) / s.slope;
      for (const size_t i : s.causal) {
        const size_t of_z = static_cast<size_t>(n * cols) + i, of_w = static_cast<size_t>(r * cols) + i;
        expected_z[of_z] += g * w.dense[of_w], size_z[of_z] += std::abs(g * w.dense[of_w]);
        expected_w[of_w] += g * (static_cast<double>(z[of_z]) - s.z), size_w[of_w] += std::abs(g) * s.z;
      }
    }
  for (size_t i = 0; i < z.size(); ++i)
    ESL_EXPECT(std::abs(static_cast<double>(grad_z[i]) - expected_z[i]) <= 1e-5 * size_z[i]);
  w.each([&](size_t p, int64_t r, int64_t c) {
    const auto at = static_cast<size_t>(r * cols + c);
    ESL_EXPECT(r < 0 ? grad_values[p] == 0.f
                     : std::abs(static_cast<double>(grad_values[p]) - expected_w[at]) <= 1e-5 * size_w[at]);
  });
}

}  // namespace

void run() {
  for (const int64_t bm : {1, 2, 4, 8})
    for (const int64_t bn : {1, 2, 4, 16})
      for (const int times : {0, 2}) check(13, 41, bm, bn, 5, 0.5, times, 1);
  check(40, 300, 4, 4, 33, 0.2, 0, 3);
  check(40, 300, 1, 1, 17, 0.1, 2, 3);
  for (const int times : {1, 8, 9}) check(14, 50, 2, 4, 70, 0.3, times, 2);  // tiles of 64 samples
  check(6, 30, 1, 1, 1100, 0.4, 3, 2);                                       // more than one round of tiles
  check(1, 1, 1, 1, 1, 1.0, 0, 1);
  check(9, 10, 4, 4, 0, 0.5, 0, 2);
  check(9, 10, 4, 4, 3, 0.0, 0, 2);
}
