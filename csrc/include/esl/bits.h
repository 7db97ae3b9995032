// What C++17 has no portable name for. For kernels only; see parallel.h for why it lives in esl::ESL_ISA.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef _MSC_VER
#include <intrin.h>
#endif

namespace esl::ESL_ISA {

#ifdef _MSC_VER

inline int count_ones(uint64_t x) {  // popcnt is more than the oldest x86-64 has
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int>(x * 0x0101010101010101u >> 56);
}
inline int lowest_one(uint64_t x) {  // of x != 0
  unsigned long at;
  _BitScanForward64(&at, x);
  return static_cast<int>(at);
}
inline void prefetch(const void*) {}
inline void prefetch_to_write(const void*) {}

#else

inline int count_ones(uint64_t x) { return __builtin_popcountll(x); }
inline int lowest_one(uint64_t x) { return __builtin_ctzll(x); }  // of x != 0
inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1); }

#endif

// |x|. A sign is a bit; MSVC's fabsf is an inline function of one name for all instruction sets.
inline float magnitude(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits &= 0x7fffffffu;
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace esl::ESL_ISA
