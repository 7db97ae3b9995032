// Elements of activations: float32, bfloat16, float16; computed with as float32.
#pragma once

#include "esl/lanes.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include <cstdint>
#include <cstring>

namespace esl::cuda {

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

ESL_INLINE float widen(float x) { return x; }
ESL_INLINE float widen(Bf16 x) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
#else
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
#endif
}
ESL_INLINE float widen(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  // Exponent and mantissa in place, then scaled: subnormal numbers come out right; infinity and NaN are told apart.
  const uint32_t magnitude = x.bits & 0x7FFFu;
  uint32_t bits = magnitude << 13;
  float y;
  std::memcpy(&y, &bits, 4);
  y *= 0x1p112f;
  std::memcpy(&bits, &y, 4);
  bits |= (magnitude >= 0x7C00u ? 0x7F800000u : 0u) | (x.bits & 0x8000u) << 16;
  std::memcpy(&y, &bits, 4);
  return y;
#endif
}

// To nearest, ties to even.
ESL_INLINE void narrow(float x, float& out) { out = x; }
ESL_INLINE void narrow(float x, Bf16& out) {
#ifdef __CUDA_ARCH__
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  out.bits = static_cast<uint16_t>(x != x ? 0x7FC0u : (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
#endif
}
ESL_INLINE void narrow(float x, Half& out) {
#ifdef __CUDA_ARCH__
  out.bits = __half_as_ushort(__float2half_rn(x));
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7FFFFFFFu;
  uint32_t y;
  if (bits > 0x7F800000u) {
    y = 0x7E00u;
  } else if (bits >= 0x477FF000u) {  // 65520, the first that rounds to infinity
    y = 0x7C00u;
  } else if (bits < 0x38800000u) {  // below the normal numbers: adding 2^-1 leaves multiples of 2^-24
    float shifted;
    std::memcpy(&shifted, &bits, 4);
    shifted += 0.5f;
    std::memcpy(&y, &shifted, 4);
    y -= 0x3F000000u;
  } else {
    y = (bits - 0x38000000u + 0xFFFu + (bits >> 13 & 1)) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | y);
#endif
}

// N neighbours, loaded and stored at once; addresses are multiples of their size.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T x[N];
};
template <int N, class T>
ESL_INLINE Vector<T, N> load(const T* p) {
  return *reinterpret_cast<const Vector<T, N>*>(p);
}
template <class T>
ESL_INLINE void store_pair(T* p, float a, float b) {
  Vector<T, 2> v;
  narrow(a, v.x[0]);
  narrow(b, v.x[1]);
  *reinterpret_cast<Vector<T, 2>*>(p) = v;
}
ESL_INLINE void store_pair(void* p, Dtype dtype, int64_t at, float a, float b) {
  if (dtype == Dtype::f32)
    store_pair(static_cast<float*>(p) + at, a, b);
  else if (dtype == Dtype::bf16)
    store_pair(static_cast<Bf16*>(p) + at, a, b);
  else
    store_pair(static_cast<Half*>(p) + at, a, b);
}

// f(T{}) with the element type of a dtype.
template <class F>
void with_element(Dtype dtype, F f) {
  dtype == Dtype::f32 ? f(float{}) : dtype == Dtype::bf16 ? f(Bf16{}) : f(Half{});
}

}  // namespace esl::cuda
