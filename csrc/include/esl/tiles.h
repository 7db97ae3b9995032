// What the kernels of block-sparse weights share: 16-entry tables of weight sums, and sums over lanes. For kernels
// only.
#pragma once

#include "esl/parallel.h"
#include "esl/simd.h"

namespace esl::ESL_ISA {

inline int64_t align64(int64_t bytes) { return (bytes + 63) & ~int64_t{63}; }

// Tables take 16-entry permutes. Without them several planes are read as levels (conv_image.h): a byte becomes a float
// in two instructions, however many planes it came from, where bits take four for each.
#if defined(ESL_ISA_AVX512)
constexpr bool kHasTables = true;
constexpr int kTables = 256;  // tables built at a time: 16 KB, in L1

// Spikes of n <= 4 channels as one nibble a lane: 4 words, one per 16 lanes. In a word the nibbles of even lanes come
// first, so that one broadcast and one variable shift put lane e's nibble into element e.
inline void to_nibbles(const uint64_t* words, int64_t n, uint64_t* nibbles) {
  constexpr uint64_t kEven = 0x5555555555555555ull, kNibble = 0x1111111111111111ull;
  uint64_t out[4] = {0, 0, 0, 0};
  for (int64_t k = 0; k < n; ++k) {
    const uint64_t even = _pext_u64(words[k], kEven), odd = _pext_u64(words[k], ~kEven);
    for (int q = 0; q < 4; ++q) {
      const uint64_t lanes = (even >> (8 * q) & 255) | (odd >> (8 * q) & 255) << 8;
      out[q] |= _pdep_u64(lanes, kNibble << k);
    }
  }
  std::memcpy(nibbles, out, sizeof(out));
}

inline __m512i nibble_index(const uint64_t* nibbles) {
  const __m512i shift = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
  return _mm512_srlv_epi32(_mm512_set1_epi64(static_cast<int64_t>(*nibbles)), shift);
}

// tables[t] for TM rows of one (block, 4 channels): element k is the sum of the weights whose bit is set in k.
template <int TM>
inline void build_tables(const float* v, int64_t wo, int64_t valid, float* tables) {
  constexpr __mmask16 kBit[4] = {0xAAAA, 0xCCCC, 0xF0F0, 0xFF00};
  for (int i = 0; i < TM; ++i) {
    __m512 t = _mm512_setzero_ps();
    for (int k = 0; k < 4; ++k)
      if (k < valid) t = _mm512_mask_add_ps(t, kBit[k], t, _mm512_set1_ps(v[i * wo + k]));
    _mm512_store_ps(tables + i * 16, t);
  }
}

#else
constexpr bool kHasTables = false;
#endif

// Sums of TM * TN vectors, out[i * TN + k].
template <int N>
inline void sum_all(const f32x16* acc, float* out) {
#if defined(ESL_ISA_AVX512)
  if constexpr (N == 16) {
    f32x16 m[16];
    for (int i = 0; i < 16; ++i) m[i] = acc[i];
    transpose(m);
    for (int step = 8; step; step >>= 1)
      for (int i = 0; i < step; ++i) m[i] = m[i] + m[i + step];
    store(out, m[0]);
    return;
  }
#endif
  for (int i = 0; i < N; ++i) out[i] = sum(acc[i]);
}

// Sums of a weight gradient that stay in registers: 4 rows of this many columns.
constexpr int kTileColumns = kTileVectors;

// Few sums would wait for their own last addition: then each of the 4 vectors of a word has sums of its own.
template <int N>
constexpr int kSets = N * 2 <= 4 * kTileColumns && N < 8 ? 4 : 1;

template <int N>
inline void sum_sets(f32x16 (*acc)[N], float* out) {
  for (int i = 0; i < N && kSets<N> == 4; ++i) acc[0][i] = (acc[0][i] + acc[1][i]) + (acc[2][i] + acc[3][i]);
  sum_all<N>(acc[0], out);
}

}  // namespace esl::ESL_ISA
