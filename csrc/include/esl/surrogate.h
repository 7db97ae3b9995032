// Surrogate derivatives of the spike, defined in esl_sparse/ops/lif/surrogate.py. For kernels only.
#pragma once

#include <cstring>

#include "esl/lif.h"
#include "esl/simd.h"

namespace esl::ESL_ISA {

// exp(z) for z <= 0 to 2 ulp (Cephes' expf polynomial); plain arithmetic that the compiler vectorises. NaN stays NaN.
inline float exp_negative(float z) {
  const float x = z < -87.f ? -87.f : z;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, which ends in the low bits
  const float rounded = x * 1.44269504f + kRound, n = rounded - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float poly = 1.9875691500e-4f;
  poly = poly * r + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  uint32_t bits;
  std::memcpy(&bits, &rounded, 4);
  bits = (bits + 127u) << 23;  // 2^n; the bits of kRound are shifted out
  float power;
  std::memcpy(&power, &bits, 4);
  return ((poly * r) * r + r + 1.f) * power;
}

// At distance d = u - v_threshold; inverse is 1 / width, so that no neuron divides by it.
template <Surrogate kind>
inline float derivative(float d, float width, float inverse) {
  const float away = magnitude(d);
  if constexpr (kind == Surrogate::triangle) {
    const float h = 1.f - away * inverse;
    return (h < 0.f ? 0.f : h) * inverse;
  } else if constexpr (kind == Surrogate::rectangle) {
    return away < width * 0.5f ? inverse : 0.f;
  } else if constexpr (kind == Surrogate::sigmoid) {
    const float e = exp_negative(-4.f * inverse * away);
    return 4.f * inverse * (e / ((1.f + e) * (1.f + e)));
  } else {
    const float z = 3.14159265358979f * inverse * d;
    return 1.f / (width * (1.f + z * z));
  }
}

// At 16 distances. Without the pragma GCC unrolls the loop before it could vectorise it.
template <Surrogate kind>
inline f32x16 derivative(f32x16 d, float width, float inverse) {
  float x[kLanes];
  store(x, d);
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) x[i] = derivative<kind>(x[i], width, inverse);
  return load(x);
}

}  // namespace esl::ESL_ISA
