// Op sample: different numbers below a bound, drawn by chance, each computed from its position alone.
//
// Position i becomes what a permutation of [0, total) makes of it: a Feistel network on pairs (i / right, i % right),
// whose two sides need not be powers of two (Black and Rogaway 2002), applied again while the result is not below total
// (cycle walking; rare, since left * right exceeds total by less than left). So nothing has to be remembered to keep
// numbers apart, and CPU and GPU draw the same ones.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/lanes.h"
#include "esl/stream.h"

namespace esl {

constexpr int kSampleRounds = 12;

struct Sample {
  int64_t total, count;  // count <= total <= 2^62
  int64_t left, right;   // at most 2^31 each; left * right >= total
  uint32_t keys[kSampleRounds];
  int64_t* out;  // [count]
  int threads;

  // Where there are no numbers below total, there is none to draw.
  Sample(int64_t total, int64_t count, uint64_t seed, int64_t* out, int threads)
      : total(total), count(count), left(1), right(1), keys{}, out(out), threads(threads) {
    int64_t step = int64_t{1} << 31;  // the least left whose square reaches total, bit by bit
    for (left = 0; step; step /= 2)
      if ((left + step) * (left + step) < total) left += step;
    ++left;
    right = total > 0 ? (total + left - 1) / left : 1;
    for (uint32_t& key : keys) {  // splitmix64 (Steele et al. 2014)
      seed += 0x9E3779B97F4A7C15ull;
      uint64_t z = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9ull;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
      key = static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
    }
  }
  // MurmurHash3's finaliser.
  ESL_INLINE static uint32_t mix(uint32_t h) {
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    return h ^ (h >> 16);
  }
  // A side of a pair after a round: moved on, around its size, by what the other side says.
  ESL_INLINE static uint32_t moved(uint32_t side, uint32_t size, uint32_t other, uint32_t key) {
    const auto by = static_cast<uint32_t>((uint64_t{mix(other ^ key)} * size) >> 32);  // below size
    const uint32_t sum = side + by;
    return sum < size ? sum : sum - size;
  }
  ESL_INLINE int64_t at(int64_t i) const {
    const auto l = static_cast<uint32_t>(left), r = static_cast<uint32_t>(right);
    do {
      auto a = static_cast<uint32_t>(i / right), b = static_cast<uint32_t>(i % right);
      for (int k = 0; k < kSampleRounds; k += 2) {
        a = moved(a, l, b, keys[k]);
        b = moved(b, r, a, keys[k + 1]);
      }
      i = int64_t{a} * right + b;
    } while (i >= total);
    return i;
  }
};

ESL_DECLARE_CPU(void sample(const Sample& p))
void launch_sample(const Sample& p, Stream stream);

}  // namespace esl
