// Op select. Radix selection on (score, hash of id), 96 bits as an unsigned number, as on the CPU: each pass counts one
// digit among the elements that agree with the bound so far, which fixes one more digit of the bound. The bound stays
// on the GPU, so the host launches all passes without waiting; those after the last one that is needed find nothing to
// do. Nothing is copied or sorted: a pass reads 4 bytes an element.
#include "esl/select.h"
#include "launch.h"

namespace esl {

namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBins = 1 << 11;
constexpr int kEach = 8;                 // elements of a thread
constexpr int kTile = kThreads * kEach;  // of a block of threads

struct Digit {
  bool hash;  // of the hash, else of the score
  int shift, bits;
};
constexpr Digit kDigits[] = {{false, 21, 11}, {false, 10, 11}, {false, 0, 10}, {true, 53, 11}, {true, 42, 11},
                             {true, 31, 11},  {true, 20, 11},  {true, 9, 11},  {true, 0, 9}};

// What is known of the last element to be chosen: the digits under the masks.
struct Bound {
  uint64_t hash_mask, hash;
  uint32_t mask, key;
  uint32_t need;  // elements that agree with it and are needed; `done` where they are all that agree
  uint32_t done;
};

struct State {
  Bound bound;
  uint32_t count[kBins];  // of the last digit
};

// Elements of a tile under the bound, and at it.
struct Counts {
  uint32_t below, equal;
};

struct Scratch {
  State* state;
  Counts* counts;  // of tiles; then those of all tiles before
  int tiles;

  Scratch(void* scratch, int64_t n)
      : state(static_cast<State*>(scratch)),
        counts(reinterpret_cast<Counts*>(state + 1)),
        tiles(static_cast<int>(ceil_div(n, kTile))) {}
};

struct Source {
  const float* score;
  const int64_t* ids;
  uint64_t seed;
  uint32_t flip;
  int n;

  // An unsigned number in the order of the scores, or in the opposite one. Zeros become equal.
  ESL_INLINE uint32_t key(int at) const {
    const float unsigned_zero = score[at] + 0.f;
    int32_t bits;
    memcpy(&bits, &unsigned_zero, 4);
    return (static_cast<uint32_t>(bits) ^ (static_cast<uint32_t>(bits >> 31) | 0x80000000u)) ^ flip;
  }
  // Splitmix64 of the id, with the sign flipped: unsigned order is then that of the signed hash.
  ESL_INLINE uint64_t hash(int at) const {
    uint64_t z = (static_cast<uint64_t>(ids[at]) + seed) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return (z ^ (z >> 31)) ^ (1ull << 63);
  }
  // Where an element stands: -1 under the bound, 0 at it, 1 above.
  ESL_INLINE int compare(int at, const Bound& bound) const {
    const uint32_t own = key(at) & bound.mask;
    if (own != bound.key) return own < bound.key ? -1 : 1;
    if (!bound.hash_mask) return 0;
    const uint64_t tie = hash(at) & bound.hash_mask;
    return tie == bound.hash ? 0 : tie < bound.hash ? -1 : 1;
  }
};

// Prefix sums over the threads of a block, 16 by 16. Phases: each thread sets own; sums; scan; spread; then `before`.
struct Prefix {
  static constexpr int kWidth = 16;
  Counts own[kThreads], part[kWidth];

  ESL_INLINE void sums(int thread) {
    if (thread >= kWidth) return;
    Counts sum{0, 0};
    for (int i = thread * kWidth; i < (thread + 1) * kWidth; ++i)
      sum = {sum.below + own[i].below, sum.equal + own[i].equal};
    part[thread] = sum;
  }
  ESL_INLINE void scan(int thread) {
    if (thread == 0) exclusive(part, kWidth, {0, 0});
  }
  ESL_INLINE void spread(int thread) {
    if (thread < kWidth) exclusive(own + thread * kWidth, kWidth, part[thread]);
  }
  ESL_INLINE static void exclusive(Counts* counts, int n, Counts sum) {
    for (int i = 0; i < n; ++i) {
      const Counts next{sum.below + counts[i].below, sum.equal + counts[i].equal};
      counts[i] = sum;
      sum = next;
    }
  }
};
static_assert(Prefix::kWidth * Prefix::kWidth == kThreads, "");

struct Begin {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  State* state;
  int64_t* nan;
  uint32_t need;

  template <int phase>
  ESL_INLINE void run(int, int thread, Shared&) const {
    for (int b = thread; b < kBins; b += kThreads) state->count[b] = 0;
    if (thread > 0) return;
    state->bound = {0, 0, 0, 0, need, need == 0};
    *nan = 0;
  }
};

// Count a digit of the elements that agree with the bound, and in the first pass NaN.
struct Count {
  static constexpr int kThreads = cuda::kThreads, kPhases = 3;
  struct Shared {
    uint32_t count[kBins];
  };
  Source source;
  State* state;
  int64_t* nan;
  Digit digit;
  bool first;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared& shared) const {
    if (state->bound.done && !first) return;
    if constexpr (phase == 0) {
      for (int b = thread; b < kBins; b += kThreads) shared.count[b] = 0;
    } else if constexpr (phase == 1) {
      const Bound bound = state->bound;
      const uint32_t low = (1u << digit.bits) - 1;
      for (int i = 0; i < kEach; ++i) {
        const int at = block * kTile + i * kThreads + thread;
        if (at >= source.n) break;
        const float x = source.score[at];
        if (first && x != x) atomic_add(reinterpret_cast<unsigned long long*>(nan), 1ull);
        const uint32_t key = source.key(at);
        if ((key & bound.mask) != bound.key) continue;
        uint64_t bits = key;
        if (digit.hash) {
          bits = source.hash(at);
          if ((bits & bound.hash_mask) != bound.hash) continue;
        }
        const uint32_t bin = static_cast<uint32_t>(bits >> digit.shift) & low;
        atomic_add(&shared.count[bin], 1u);
      }
    } else {
      for (int b = thread; b < kBins; b += kThreads)
        if (shared.count[b]) atomic_add(&state->count[b], shared.count[b]);
    }
  }
};

// One block of threads fixes a digit of the bound: that of the bin in which the last needed element lies.
struct Narrow {
  static constexpr int kThreads = cuda::kThreads, kPhases = 6, kEachBin = kBins / kThreads;
  struct Shared {
    Prefix prefix;
    Bound bound;
  };
  State* state;
  Digit digit;

  template <int phase>
  ESL_INLINE void run(int, int thread, Shared& shared) const {
    if (state->bound.done) return;
    uint32_t* const count = state->count + thread * kEachBin;
    if constexpr (phase == 0) {
      uint32_t sum = 0;
      for (int i = 0; i < kEachBin; ++i) sum += count[i];
      shared.prefix.own[thread] = {sum, 0};
      if (thread == 0) shared.bound = state->bound;
    } else if constexpr (phase == 1) {
      shared.prefix.sums(thread);
    } else if constexpr (phase == 2) {
      shared.prefix.scan(thread);
    } else if constexpr (phase == 3) {
      shared.prefix.spread(thread);
    } else if constexpr (phase == 4) {
      const uint32_t need = state->bound.need;
      uint32_t under = shared.prefix.own[thread].below;
      for (int i = 0; i < kEachBin; ++i) {
        if (under < need && need <= under + count[i]) set(shared.bound, thread * kEachBin + i, need - under, count[i]);
        under += count[i];
        count[i] = 0;
      }
    } else {
      if (thread == 0) state->bound = shared.bound;
    }
  }
  ESL_INLINE void set(Bound& bound, int bin, uint32_t need, uint32_t here) const {
    const uint64_t low = (1ull << digit.bits) - 1;
    if (digit.hash) {
      bound.hash_mask |= low << digit.shift;
      bound.hash |= static_cast<uint64_t>(bin) << digit.shift;
    } else {
      bound.mask |= static_cast<uint32_t>(low << digit.shift);
      bound.key |= static_cast<uint32_t>(bin) << digit.shift;
    }
    bound.need = need;
    bound.done = here == need;
  }
};

// Elements of each tile under the bound and at it; a thread looks at kEach neighbours.
ESL_INLINE Counts count_own(const Source& source, const Bound& bound, int first) {
  Counts own{0, 0};
  for (int at = first; at < min(source.n, first + kEach); ++at) {
    const int side = source.compare(at, bound);
    own.below += side < 0;
    own.equal += side == 0;
  }
  return own;
}

struct CountTiles {
  static constexpr int kThreads = cuda::kThreads, kPhases = 3;
  struct Shared {
    Prefix prefix;
  };
  Source source;
  const State* state;
  Counts* counts;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared& shared) const {
    if constexpr (phase == 0) {
      shared.prefix.own[thread] = count_own(source, state->bound, block * kTile + thread * kEach);
    } else if constexpr (phase == 1) {
      shared.prefix.sums(thread);
    } else if (thread == 0) {
      Counts sum{0, 0};
      for (const Counts& part : shared.prefix.part) sum = {sum.below + part.below, sum.equal + part.equal};
      counts[block] = sum;
    }
  }
};

// One block of threads: what the tiles before each tile hold.
struct ScanTiles {
  static constexpr int kThreads = cuda::kThreads, kPhases = 5;
  struct Shared {
    Prefix prefix;
  };
  Counts* counts;
  int tiles;

  template <int phase>
  ESL_INLINE void run(int, int thread, Shared& shared) const {
    const int each = (tiles + kThreads - 1) / kThreads, begin = min(tiles, thread * each);
    const int end = min(tiles, begin + each);
    if constexpr (phase == 0) {
      Counts sum{0, 0};
      for (int i = begin; i < end; ++i) sum = {sum.below + counts[i].below, sum.equal + counts[i].equal};
      shared.prefix.own[thread] = sum;
    } else if constexpr (phase == 1) {
      shared.prefix.sums(thread);
    } else if constexpr (phase == 2) {
      shared.prefix.scan(thread);
    } else if constexpr (phase == 3) {
      shared.prefix.spread(thread);
    } else {
      Prefix::exclusive(counts + begin, end - begin, shared.prefix.own[thread]);
    }
  }
};

// Positions in ascending order. Only ids that are not all different leave more at the bound than are needed.
struct Write {
  static constexpr int kThreads = cuda::kThreads, kPhases = 5;
  struct Shared {
    Prefix prefix;
  };
  Source source;
  const State* state;
  const Counts* counts;
  int64_t* chosen;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared& shared) const {
    const int first = block * kTile + thread * kEach;
    if constexpr (phase == 0) {
      shared.prefix.own[thread] = count_own(source, state->bound, first);
    } else if constexpr (phase == 1) {
      shared.prefix.sums(thread);
    } else if constexpr (phase == 2) {
      shared.prefix.scan(thread);
    } else if constexpr (phase == 3) {
      shared.prefix.spread(thread);
    } else {
      const Bound bound = state->bound;
      uint32_t below = counts[block].below + shared.prefix.own[thread].below;
      uint32_t equal = counts[block].equal + shared.prefix.own[thread].equal;
      for (int at = first; at < min(source.n, first + kEach); ++at) {
        const int side = source.compare(at, bound);
        if (side < 0 || (side == 0 && equal < bound.need))
          chosen[below + (equal < bound.need ? equal : bound.need)] = at;
        below += side < 0;
        equal += side == 0;
      }
    }
  }
};

}  // namespace
}  // namespace cuda

using namespace cuda;

int64_t cuda_select_scratch(int64_t n) {
  return static_cast<int64_t>(sizeof(State)) + ceil_div(n, kTile) * static_cast<int64_t>(sizeof(Counts));
}

void launch_select(const Select& p, int64_t* nan, Stream stream) {
  const int n = int32("select", "scores", p.n);
  const Scratch scratch(p.scratch, n);
  const Source source{p.score, p.ids, p.seed, p.largest ? ~0u : 0u, n};
  launch("select", Begin{scratch.state, nan, static_cast<uint32_t>(p.count)}, 1, stream);
  for (const Digit& digit : kDigits) {
    const bool first = &digit == kDigits;
    launch("select", Count{source, scratch.state, nan, digit, first}, scratch.tiles, stream);
    if (p.count == 0) return;
    launch("select", Narrow{scratch.state, digit}, 1, stream);
  }
  launch("select", CountTiles{source, scratch.state, scratch.counts}, scratch.tiles, stream);
  launch("select", ScanTiles{scratch.counts, scratch.tiles}, 1, stream);
  launch("select", Write{source, scratch.state, scratch.counts, p.chosen}, scratch.tiles, stream);
}

}  // namespace esl
