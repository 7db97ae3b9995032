// 16 float lanes, one type for every instruction set: a zmm register, two ymm, or what the compiler makes of it.
// For kernels only; see parallel.h for why everything lives in esl::ESL_ISA.
#pragma once

#include <cstdint>
#include <cstring>

#include "esl/bits.h"

#if defined(ESL_ISA_AVX512) || defined(ESL_ISA_AVX2)
#include <immintrin.h>
#endif

namespace esl::ESL_ISA {

constexpr int kLanes = 16;  // lanes per vector
constexpr int kWord = 64;   // lanes per spike word and per panel

struct bf16 {
  uint16_t bits;
};

#if defined(ESL_ISA_AVX512)

constexpr int kTileVectors = 4;  // vectors a tile row may hold: 4 rows of 4 leave half of the 32 registers free
struct f32x16 {
  __m512 v;
};
inline f32x16 zero() { return {_mm512_setzero_ps()}; }
inline f32x16 set1(float a) { return {_mm512_set1_ps(a)}; }
inline f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline f32x16 load(const float* p, int n) { return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)}; }
inline void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
inline void store(float* p, f32x16 a, int n) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a.v); }
inline f32x16 load(const bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline f32x16 load(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline f32x16 fmadd(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// a + b where the lane's bit is set, else a.
inline f32x16 add_where(f32x16 a, uint16_t bits, f32x16 b) {
  return {_mm512_mask_add_ps(a.v, static_cast<__mmask16>(bits), a.v, b.v)};
}
inline f32x16 add_where(f32x16 a, const uint16_t* bits, f32x16 b) {  // loads straight into a mask register
  return {_mm512_mask_add_ps(a.v, _load_mask16(reinterpret_cast<__mmask16*>(const_cast<uint16_t*>(bits))), a.v, b.v)};
}
inline f32x16 keep_where(uint16_t bits, f32x16 a) { return {_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), a.v)}; }
inline uint16_t equals(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
inline uint16_t greater(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline uint16_t at_least(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
inline f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
inline float sum(f32x16 a) { return _mm512_reduce_add_ps(a.v); }

#elif defined(ESL_ISA_AVX2)

constexpr int kTileVectors = 1;
struct f32x16 {
  __m256 a, b;
};
inline f32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline f32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, f32x16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline f32x16 load(const bf16* p) {
  const auto* q = reinterpret_cast<const __m128i*>(p);
  const __m256i a = _mm256_cvtepu16_epi32(_mm_loadu_si128(q)), b = _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
}
inline f32x16 load(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes)))};
}
inline f32x16 operator+(f32x16 x, f32x16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline f32x16 operator-(f32x16 x, f32x16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline f32x16 operator*(f32x16 x, f32x16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline f32x16 operator/(f32x16 x, f32x16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline f32x16 fmadd(f32x16 x, f32x16 y, f32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline __m256 lane_mask(uint32_t bits) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, bit), bit));
}
inline f32x16 keep_where(uint16_t bits, f32x16 x) {
  return {_mm256_and_ps(lane_mask(bits & 255u), x.a), _mm256_and_ps(lane_mask(bits >> 8), x.b)};
}
inline f32x16 add_where(f32x16 x, uint16_t bits, f32x16 y) { return x + keep_where(bits, y); }
inline uint16_t equals(f32x16 x, f32x16 y) {
  const int a = _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ));
  const int b = _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ));
  return static_cast<uint16_t>(a | b << 8);
}
inline uint16_t greater(f32x16 x, f32x16 y) {
  const int a = _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ));
  const int b = _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ));
  return static_cast<uint16_t>(a | b << 8);
}
inline uint16_t at_least(f32x16 x, f32x16 y) {
  const int a = _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ));
  const int b = _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ));
  return static_cast<uint16_t>(a | b << 8);
}
inline f32x16 abs(f32x16 x) {
  const __m256 sign = _mm256_set1_ps(-0.f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline float sum(f32x16 x) {
  const __m256 h = _mm256_add_ps(x.a, x.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

#else

constexpr int kTileVectors = 1;
struct f32x16 {
  float v[16];
};
#define ESL_LANEWISE(expression)                    \
  f32x16 r;                                         \
  for (int i = 0; i < 16; ++i) r.v[i] = expression; \
  return r;
inline f32x16 zero() { ESL_LANEWISE(0.f) }
inline f32x16 set1(float x) { ESL_LANEWISE(x) }
inline f32x16 load(const float* p) { ESL_LANEWISE(p[i]) }
inline f32x16 load(const uint8_t* p) { ESL_LANEWISE(static_cast<float>(p[i])) }
inline f32x16 load(const bf16* p) {
  f32x16 r;
  for (int i = 0; i < 16; ++i) {
    const uint32_t wide = static_cast<uint32_t>(p[i].bits) << 16;
    std::memcpy(&r.v[i], &wide, 4);
  }
  return r;
}
inline void store(float* p, f32x16 x) {
  for (int i = 0; i < 16; ++i) p[i] = x.v[i];
}
inline f32x16 operator+(f32x16 x, f32x16 y) { ESL_LANEWISE(x.v[i] + y.v[i]) }
inline f32x16 operator-(f32x16 x, f32x16 y) { ESL_LANEWISE(x.v[i] - y.v[i]) }
inline f32x16 operator*(f32x16 x, f32x16 y) { ESL_LANEWISE(x.v[i] * y.v[i]) }
inline f32x16 operator/(f32x16 x, f32x16 y) { ESL_LANEWISE(x.v[i] / y.v[i]) }
inline f32x16 fmadd(f32x16 x, f32x16 y, f32x16 z) { ESL_LANEWISE(x.v[i] * y.v[i] + z.v[i]) }
inline f32x16 keep_where(uint16_t bits, f32x16 x) {  // by masks: a choice per lane became 16 unforeseeable jumps
  uint32_t u[16];
  std::memcpy(u, x.v, sizeof u);
  for (int i = 0; i < 16; ++i) u[i] &= (bits & 1u << i) ? ~0u : 0u;
  std::memcpy(x.v, u, sizeof u);
  return x;
}
inline f32x16 add_where(f32x16 x, uint16_t bits, f32x16 y) { return x + keep_where(bits, y); }
inline uint16_t equals(f32x16 x, f32x16 y) {
  unsigned bits = 0;
  for (int i = 0; i < 16; ++i) bits |= static_cast<unsigned>(x.v[i] == y.v[i]) << i;
  return static_cast<uint16_t>(bits);
}
inline uint16_t greater(f32x16 x, f32x16 y) {
  unsigned bits = 0;
  for (int i = 0; i < 16; ++i) bits |= static_cast<unsigned>(x.v[i] > y.v[i]) << i;
  return static_cast<uint16_t>(bits);
}
inline uint16_t at_least(f32x16 x, f32x16 y) {
  unsigned bits = 0;
  for (int i = 0; i < 16; ++i) bits |= static_cast<unsigned>(x.v[i] >= y.v[i]) << i;
  return static_cast<uint16_t>(bits);
}
inline f32x16 abs(f32x16 x) { ESL_LANEWISE(magnitude(x.v[i])) }
inline float sum(f32x16 x) {
  float s[4] = {0, 0, 0, 0};
  for (int i = 0; i < 16; ++i) s[i & 3] += x.v[i];
  return (s[0] + s[1]) + (s[2] + s[3]);
}
#undef ESL_LANEWISE

#endif

#if !defined(ESL_ISA_AVX512)
inline f32x16 add_where(f32x16 x, const uint16_t* bits, f32x16 y) { return add_where(x, *bits, y); }
inline f32x16 load(const float* p, int n) {
  float whole[16] = {};
  std::memcpy(whole, p, static_cast<size_t>(n) * sizeof(float));
  return load(whole);
}
inline void store(float* p, f32x16 x, int n) {
  float whole[16];
  store(whole, x);
  std::memcpy(p, whole, static_cast<size_t>(n) * sizeof(float));
}
#endif

inline f32x16 load(const bf16* p, int n) {
  bf16 whole[16] = {};
  std::memcpy(whole, p, static_cast<size_t>(n) * sizeof(bf16));
  return load(whole);
}

// To bfloat16, to nearest even; NaN stays NaN.
inline bf16 narrow(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16, quiet = u >> 16 | 0x40u;
  return {static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
}
inline void store(bf16* p, f32x16 x, int n) {
  float whole[16];
  store(whole, x);
  for (int i = 0; i < n; ++i) p[i] = narrow(whole[i]);
}
inline void store(bf16* p, f32x16 x) { store(p, x, 16); }

// Transpose 16 vectors of 16.
#if defined(ESL_ISA_AVX512)
inline void transpose(f32x16* m) {
  __m512 t[16], r[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(m[2 * i].v, m[2 * i + 1].v);
    t[2 * i + 1] = _mm512_unpackhi_ps(m[2 * i].v, m[2 * i + 1].v);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
    const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
    r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    m[i].v = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    m[i + 8].v = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    m[i + 4].v = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    m[i + 12].v = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}
#elif defined(ESL_ISA_AVX2)
inline void transpose8(const __m256* m, __m256* out) {
  __m256 t[8], r[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(m[2 * i], m[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(m[2 * i], m[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    out[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    out[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
}
inline void transpose(f32x16* m) {
  __m256 quarter[4][8], flipped[4][8];
  for (int i = 0; i < 8; ++i) {
    quarter[0][i] = m[i].a;
    quarter[1][i] = m[i].b;
    quarter[2][i] = m[i + 8].a;
    quarter[3][i] = m[i + 8].b;
  }
  for (int k = 0; k < 4; ++k) transpose8(quarter[k], flipped[k]);
  for (int i = 0; i < 8; ++i) {
    m[i] = {flipped[0][i], flipped[2][i]};
    m[i + 8] = {flipped[1][i], flipped[3][i]};
  }
}
#else
inline void transpose(f32x16* m) {
  float a[16][16], b[16][16];
  for (int i = 0; i < 16; ++i) store(a[i], m[i]);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) b[j][i] = a[i][j];
  for (int i = 0; i < 16; ++i) m[i] = load(b[i]);
}
#endif

}  // namespace esl::ESL_ISA
