// Op block_score. Event-driven: a channel's gradients are sums of the output gradients at its spikes, so that work
// falls with the firing rate. 64 rows at a time: their gradients are packed side by side (4 vectors a lane), then each
// channel's spikes become a list of packed rows to add up.
#include "esl/block_score.h"

#include "esl/panels.h"
#include "esl/parallel.h"

namespace esl::ESL_ISA {
namespace {

constexpr int kPiece = 64;                   // rows at a time
constexpr int64_t kChunk = 32;               // words listed at a time: a list of 8 KB
constexpr int64_t kWorkPerThread = 1 << 15;  // (lane, channel) pairs worth a second thread

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// 64 lanes of one call. The packed rows of its lanes stand in Scratch::row.
struct Group {
  const uint64_t* words;  // [cols]
  int64_t quarters;
};

struct Scratch {
  int64_t groups = 0, rows = 0;  // of all calls together
  float* packed;                 // [rows, 64]
  Group* group;                  // [groups]
  int32_t* row;                  // [groups, 64]

  explicit Scratch(const BlockScore& p) {
    for (int64_t i = 0; i < p.call_count; ++i) {
      groups += p.calls[i].lanes.groups();
      rows += p.calls[i].lanes.rows();
    }
    packed = static_cast<float*>(p.scratch);
    group = reinterpret_cast<Group*>(static_cast<char*>(p.scratch) + rows * kPiece * 4);
    row = reinterpret_cast<int32_t*>(group + groups);
  }
  int64_t bytes() const { return 64 + rows * kPiece * 4 + groups * static_cast<int64_t>(sizeof(Group) + kWord * 4); }

  void index(const BlockScore& p) {
    int64_t k = 0, base = 0;
    for (int64_t i = 0; i < p.call_count; ++i) {
      const ScoreCall& call = p.calls[i];
      for (int64_t g = 0; g < call.lanes.groups(); ++g, ++k) {
        const LaneRows lanes(call.lanes, g);
        group[k] = {call.words + g * p.cols, lanes.quarters};
        for (int l = 0; l < kWord; ++l)
          row[k * kWord + l] = lanes.row[l] < 0 ? 0 : static_cast<int32_t>(base + lanes.row[l]);
      }
      base += call.lanes.rows();
    }
  }
};

// Columns [first, first + width) of a call's gradient, scaled, side by side; zero up to 64.
template <class T>
void pack_gradient(const ScoreCall& call, int64_t rows, int64_t first, int width, float* packed, int threads) {
  const T* const grad = static_cast<const T*>(call.grad);
  const f32x16 scale = set1(call.scale);
  parallel_for(0, call.lanes.rows(), threads, [&](int64_t r) {
    const T* const from = grad + r * rows + first;
    float* const to = packed + r * kPiece;
    for (int c = 0; c < kPiece; c += 16) {
      const int n = width - c;
      store(to + c, n >= 16 ? scale * load(from + c) : n > 0 ? scale * load(from + c, n) : zero());
    }
  });
}

// Packed rows of the spikes of channel c in some groups, as many as the result says; writes up to 16 beyond.
inline int list_spikes(const Group* group, int64_t groups, int64_t c, const int32_t* row, int32_t* list) {
  int n = 0;
  for (int64_t g = 0; g < groups; ++g, row += kWord) {
    uint64_t word = group[g].words[c];
#if defined(ESL_ISA_AVX512)
    for (int64_t q = 0; q < group[g].quarters; ++q, word >>= 16) {
      const auto bits = static_cast<__mmask16>(word);
      _mm512_storeu_si512(list + n, _mm512_maskz_compress_epi32(bits, _mm512_loadu_si512(row + q * 16)));
      n += __builtin_popcount(bits);
    }
#else
    for (; word; word &= word - 1) list[n++] = row[__builtin_ctzll(word)];
#endif
  }
  return n;
}

// Two sums side by side, so that an addition need not wait for the one before it.
struct Sums {
  f32x16 even[4] = {zero(), zero(), zero(), zero()}, odd[4] = {zero(), zero(), zero(), zero()};

  void add(const float* packed, const int32_t* list, int n) {
    int i = 0;
    for (; i + 1 < n; i += 2) {
      const float* const a = packed + int64_t{list[i]} * kPiece;
      const float* const b = packed + int64_t{list[i + 1]} * kPiece;
      for (int v = 0; v < 4; ++v) even[v] = even[v] + load(a + v * 16);
      for (int v = 0; v < 4; ++v) odd[v] = odd[v] + load(b + v * 16);
    }
    if (i < n)
      for (int v = 0; v < 4; ++v) even[v] = even[v] + load(packed + int64_t{list[i]} * kPiece + v * 16);
  }
};

inline f32x16 magnitude(f32x16 a) {
  float v[16];
  store(v, a);
  for (float& x : v) x = x < 0 ? -x : x;
  return load(v);
}

// Sums of |G| over the channels of one column block, for each of the 64 rows.
void add_block(const Scratch& s, int64_t c0, int64_t c1, float* out) {
  f32x16 total[4] = {zero(), zero(), zero(), zero()};
  int32_t list[kChunk * kWord + 16];
  for (int64_t c = c0; c < c1; ++c) {
    Sums sums;
    for (int64_t g = 0; g < s.groups; g += kChunk) {
      const int n = list_spikes(s.group + g, min(kChunk, s.groups - g), c, s.row + g * kWord, list);
      sums.add(s.packed, list, n);
    }
    for (int v = 0; v < 4; ++v) total[v] = total[v] + magnitude(sums.even[v] + sums.odd[v]);
  }
  for (int v = 0; v < 4; ++v) store(out + v * 16, total[v]);
}

}  // namespace

int64_t block_score_scratch(const BlockScore& p) { return Scratch(p).bytes(); }

void block_score(const BlockScore& p) {
  Scratch s(p);
  s.index(p);
  const int64_t col_blocks = ceil_div(p.cols, p.bn), last_row = min((p.first + p.count) * p.bm, p.rows);
  const int threads = static_cast<int>(min(p.threads, 1 + s.groups * kWord * p.cols / kWorkPerThread));
  // 16 column blocks make a vector of scores; fewer where threads would be left without any.
  const int64_t span = min(16, ceil_div(col_blocks, int64_t{4} * threads));
  for (int64_t first = p.first * p.bm; first < last_row; first += kPiece) {
    const int width = static_cast<int>(min(kPiece, last_row - first));
    float* packed = s.packed;
    for (int64_t i = 0; i < p.call_count; ++i) {
      const auto pack = p.calls[i].dtype == Dtype::f32 ? pack_gradient<float> : pack_gradient<bf16>;
      pack(p.calls[i], p.rows, first, width, packed, threads);
      packed += p.calls[i].lanes.rows() * kPiece;
    }
    parallel_for_dynamic(0, ceil_div(col_blocks, span), threads, 1, [&](int64_t u) {
      const int64_t b0 = u * span, blocks = min(span, col_blocks - b0);
      alignas(64) float sums[16][kPiece] = {};
      float channels[16];
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t c = (b0 + b) * p.bn, c1 = min(c + p.bn, p.cols);
        channels[b] = static_cast<float>(c1 - c);
        add_block(s, c, c1, sums[b]);
      }
      alignas(64) float by_row[kPiece][16];
      for (int q = 0; q < kPiece; q += 16) {
        f32x16 m[16];
        for (int b = 0; b < 16; ++b) m[b] = load(sums[b] + q);
        transpose(m);
        for (int r = 0; r < 16; ++r) store(by_row[q + r], m[r]);
      }
      // A block taller than a piece is finished by its last one.
      const int64_t height = min(p.bm, kPiece);
      for (int64_t r = 0; r < width; r += height) {
        f32x16 total = load(by_row[r]);
        for (int64_t k = 1; k < height; ++k) total = total + load(by_row[r + k]);
        float value[16];
        store(value, total);
        const int64_t row_block = (first + r) / p.bm, begin = row_block * p.bm, end = min(begin + p.bm, p.rows);
        float* const out = p.scores + (row_block - p.first) * col_blocks + b0;
        const bool starts = first + r == begin, ends = first + r + height >= end;
        for (int64_t b = 0; b < blocks; ++b) {
          const float sum = starts ? value[b] : out[b] + value[b];
          out[b] = ends ? sum / (static_cast<float>(end - begin) * channels[b]) : sum;
        }
      }
    });
  }
}

int64_t count_spikes(const uint64_t* words, int64_t count) {
  int64_t n = 0;
  for (int64_t i = 0; i < count; ++i) n += __builtin_popcountll(words[i]);
  return n;
}

}  // namespace esl::ESL_ISA
