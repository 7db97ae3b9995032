// Test data: seeded numbers, and buffers that start at the end of a heap block so that the sanitizer sees any step
// outside.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace esl {

struct Random {
  uint64_t state;

  uint64_t next() {  // splitmix64
    uint64_t z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  float real() { return static_cast<float>(2 * uniform() - 1); }
  std::vector<float> reals(int64_t n) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = real();
    return v;
  }
  std::vector<float> spikes(int64_t n, double rate) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = uniform() < rate ? 1.f : 0.f;
    return v;
  }
};

// Results and scratch start as NaN: what a kernel forgets to write shows.
inline std::vector<float> poison(int64_t n) {
  return std::vector<float>(static_cast<size_t>(n), std::numeric_limits<float>::quiet_NaN());
}

inline bool close(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance * (1 + std::abs(b)); }

}  // namespace esl
