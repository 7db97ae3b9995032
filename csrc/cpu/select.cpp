// Op select. Radix selection on (score, hash of id), 96 bits as an unsigned number: each pass counts one digit among
// the elements that agree with the bound so far, which fixes one more digit of the bound. It stops as soon as all that
// agree are needed: after two or three passes where no scores tie. Nothing is copied; a pass reads 4 bytes an element.
#include "esl/select.h"

#include <cstring>

#include "esl/parallel.h"

namespace esl::ESL_ISA {
namespace {

constexpr int kBins = 1 << 11;
constexpr int kBlock = 64;                   // elements whose keys are made at a time
constexpr int kCopies = 4;                   // of the histogram, for neighbours that fall into one bin
constexpr int64_t kWorkPerThread = 1 << 15;  // elements worth a second thread

struct Digit {
  bool hash;  // of the hash, else of the score
  int shift, bits;
};
constexpr Digit kDigits[] = {{false, 21, 11}, {false, 10, 11}, {false, 0, 10}, {true, 53, 11}, {true, 42, 11},
                             {true, 31, 11},  {true, 20, 11},  {true, 9, 11},  {true, 0, 9}};

// What is known of the last element to be chosen: the digits under the masks.
struct Bound {
  uint32_t mask = 0, key = 0;
  uint64_t hash_mask = 0, hash = 0;
};

// One thread's contiguous share of the elements.
struct Share {
  int64_t begin, end, nan;
  int64_t below, equal;  // elements under the bound so far, and at it
  int64_t count[kBins];  // of the last digit
};

// Splitmix64 of an id, with the sign flipped: unsigned order is then that of the signed hash.
inline uint64_t hash_of(int64_t id, uint64_t seed) {
  uint64_t z = (static_cast<uint64_t>(id) + seed) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return (z ^ (z >> 31)) ^ (1ull << 63);
}

// Unsigned numbers in the order of the scores, or in the opposite one where flip is all ones. Zeros become equal.
inline void keys_of(const float* x, uint32_t flip, uint32_t* key) {
  for (int i = 0; i < kBlock; ++i) {
    const float unsigned_zero = x[i] + 0.f;
    int32_t bits;
    std::memcpy(&bits, &unsigned_zero, 4);
    key[i] = (static_cast<uint32_t>(bits) ^ (static_cast<uint32_t>(bits >> 31) | 0x80000000u)) ^ flip;
  }
}

// f(position, size, keys) for each block of a share.
template <class F>
inline void for_blocks(const Select& p, const Share& share, F f) {
  uint32_t key[kBlock];
  for (int64_t at = share.begin; at < share.end; at += kBlock) {
    const int n = static_cast<int>(share.end - at < kBlock ? share.end - at : kBlock);
    float rest[kBlock] = {};
    if (n < kBlock) std::memcpy(rest, p.score + at, static_cast<size_t>(n) * 4);
    const float* const x = n < kBlock ? rest : p.score + at;
    keys_of(x, p.largest ? ~0u : 0u, key);
    f(at, n, x, key);
  }
}

void count_digit(const Select& p, const Bound& bound, const Digit& digit, Share& share) {
  uint32_t count[kCopies][kBins] = {};
  const uint32_t low = (1u << digit.bits) - 1;
  const bool first = !digit.hash && !bound.mask;
  for_blocks(p, share, [&](int64_t at, int n, const float* x, const uint32_t* key) {
    if (first) {
      int nan = 0;
      for (int i = 0; i < kBlock; ++i) nan += x[i] != x[i];
      share.nan += nan;
      for (int i = 0; i < n; ++i) ++count[i % kCopies][key[i] >> digit.shift];
      return;
    }
    uint32_t any = 0;
    for (int i = 0; i < kBlock; ++i) any |= (key[i] & bound.mask) == bound.key;
    if (!any) return;
    if (!digit.hash) {
      for (int i = 0; i < n; ++i) count[i % kCopies][key[i] >> digit.shift & low] += (key[i] & bound.mask) == bound.key;
      return;
    }
    int list[kBlock], ties = 0;
    for (int i = 0; i < n; ++i) {
      list[ties] = i;
      ties += key[i] == bound.key;
    }
    for (int j = 0; j < ties; ++j) {
      const uint64_t hash = hash_of(p.ids[at + list[j]], p.seed);
      count[j % kCopies][hash >> digit.shift & low] += (hash & bound.hash_mask) == bound.hash;
    }
  });
  for (int b = 0; b < kBins; ++b) {
    share.count[b] = 0;
    for (int copy = 0; copy < kCopies; ++copy) share.count[b] += count[copy][b];
  }
}

void write_chosen(const Select& p, const Bound& bound, const Share& share, int64_t* out) {
  int64_t equal = share.equal;
  for_blocks(p, share, [&](int64_t at, int n, const float*, const uint32_t* key) {
    int list[kBlock], size = 0;
    for (int i = 0; i < n; ++i) {
      list[size] = i;
      size += (key[i] & bound.mask) <= bound.key;
    }
    for (int j = 0; j < size; ++j) {
      const int i = list[j];
      if ((key[i] & bound.mask) == bound.key) {
        const uint64_t hash = bound.hash_mask ? hash_of(p.ids[at + i], p.seed) & bound.hash_mask : 0;
        if (hash > bound.hash || (hash == bound.hash && equal-- <= 0)) continue;
      }
      *out++ = at + i;
    }
  });
}

// Fix one digit of the bound; how many of those that agree with it are still needed. True if they all are.
bool narrow(Bound& bound, const Digit& digit, Share* share, int shares, int64_t& need) {
  int64_t under = 0, here = 0;
  int bin = -1;
  do {
    under += here;
    ++bin;
    here = 0;
    for (int s = 0; s < shares; ++s) here += share[s].count[bin];
  } while (under + here < need);
  for (int s = 0; s < shares; ++s) {
    for (int b = 0; b < bin; ++b) share[s].below += share[s].count[b];
    share[s].equal = share[s].count[bin];
  }
  need -= under;
  const uint64_t low = (1ull << digit.bits) - 1;
  if (digit.hash) {
    bound.hash_mask |= low << digit.shift;
    bound.hash |= static_cast<uint64_t>(bin) << digit.shift;
  } else {
    bound.mask |= static_cast<uint32_t>(low << digit.shift);
    bound.key |= static_cast<uint32_t>(bin) << digit.shift;
  }
  return here == need;
}

inline int useful_threads(const Select& p) {
  const int64_t useful = 1 + p.n / kWorkPerThread;
  return static_cast<int>(useful < p.threads ? useful : p.threads);
}

}  // namespace

int64_t select_scratch(const Select& p) { return useful_threads(p) * static_cast<int64_t>(sizeof(Share)); }

int64_t select(const Select& p) {
  const int shares = useful_threads(p);
  Share* const share = static_cast<Share*>(p.scratch);
  for (int s = 0; s < shares; ++s) {
    share[s].begin = p.n * s / shares;
    share[s].end = p.n * (s + 1) / shares;
    share[s].nan = share[s].below = 0;
  }
  Bound bound;
  int64_t need = p.count;
  for (const Digit& digit : kDigits) {
    parallel_for(0, shares, shares, [&](int64_t s) { count_digit(p, bound, digit, share[s]); });
    int64_t nan = 0;
    for (int s = 0; s < shares; ++s) nan += share[s].nan;
    if (nan || !p.count) return nan;
    if (narrow(bound, digit, share, shares, need)) break;
  }
  // Only ids that are not all different leave more at the bound than are needed.
  int64_t offset[2] = {0, need};
  for (int s = 0; s < shares; ++s) {
    if (share[s].equal > offset[1]) share[s].equal = offset[1];
    offset[1] -= share[s].equal;
    share[s].count[0] = offset[0];
    offset[0] += share[s].below + share[s].equal;
  }
  parallel_for(0, shares, shares, [&](int64_t s) { write_chosen(p, bound, share[s], p.chosen + share[s].count[0]); });
  return 0;
}

// One pass reads 4 bytes a score. Few scores pass: in the second pass only blocks that hold any are looked at closely.
int64_t not_below(const NotBelow& p) {
  const int64_t parts = (p.n + kNotBelowPart - 1) / kNotBelowPart;
  const auto passing = [&](const float* x, int64_t n) {
    int count = 0;
    for (int64_t i = 0; i < n; ++i) count += !(x[i] < p.bound);
    return count;
  };
  const auto end_of = [&](int64_t part) {
    const int64_t end = (part + 1) * kNotBelowPart;
    return end < p.n ? end : p.n;
  };
  const int threads = p.n < kWorkPerThread ? 1 : p.threads;
  if (!p.found) {
    parallel_for(0, parts, threads, [&](int64_t part) {
      const int64_t begin = part * kNotBelowPart;
      p.counts[part] = passing(p.score + begin, end_of(part) - begin);
    });
    int64_t total = 0;
    for (int64_t part = 0; part < parts; ++part) total += p.counts[part];
    return total;
  }
  int64_t total = 0;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t count = p.counts[part];
    p.counts[part] = total;  // now: where the part's positions go
    total += count;
  }
  parallel_for(0, parts, threads, [&](int64_t part) {
    int64_t* to = p.found + p.counts[part];
    for (int64_t at = part * kNotBelowPart, end = end_of(part); at < end; at += kBlock) {
      const int64_t n = end - at < kBlock ? end - at : kBlock;
      if (!passing(p.score + at, n)) continue;
      for (int64_t i = 0; i < n; ++i)
        if (!(p.score[at + i] < p.bound)) *to++ = at + i;
    }
  });
  return total;
}

}  // namespace esl::ESL_ISA
