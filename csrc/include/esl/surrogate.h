// Surrogate derivatives of the spike, defined in esl_sparse/ops/lif/surrogate.py. For kernels only.
#pragma once

#include <cstring>

#include "esl/lif.h"
#include "esl/simd.h"

namespace esl::ESL_ISA {

// exp(z) for z <= 0 to 2 ulp (Cephes' expf polynomial); plain arithmetic that the compiler vectorises. NaN stays NaN.
inline float exp_negative(float z) {
  const float clamped = z >= -87.f ? z : -87.f;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (clamped * 1.44269504f + kRound) - kRound;
  const float r = ((z >= -87.f ? z : z < -87.f ? -87.f : z) - n * 0.693359375f) + n * 2.12194440e-4f;
  float poly = 1.9875691500e-4f;
  poly = poly * r + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return ((poly * r) * r + r + 1.f) * power;
}

// At distance d = u - v_threshold; inverse is 1 / width, so that no neuron divides by it.
template <Surrogate kind>
inline float derivative(float d, float width, float inverse) {
  const float away = d < 0.f ? -d : d;
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

// The same at 16 distances, to the bit. The cheap ones are spelt out: GCC does not vectorise a loop of 16.
template <Surrogate kind>
inline f32x16 derivative(f32x16 d, float width, float inverse) {
  if constexpr (kind == Surrogate::triangle) {
    const f32x16 h = set1(1.f) - abs(d) * set1(inverse);
    return keep_where(static_cast<uint16_t>(~greater(zero(), h)), h) * set1(inverse);
  } else if constexpr (kind == Surrogate::rectangle) {
    return keep_where(greater(set1(width * 0.5f), abs(d)), set1(inverse));
  } else {
    float x[kLanes];
    store(x, d);
    for (int i = 0; i < kLanes; ++i) x[i] = derivative<kind>(x[i], width, inverse);
    return load(x);
  }
}

}  // namespace esl::ESL_ISA
