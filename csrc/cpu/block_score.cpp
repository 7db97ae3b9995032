// Op block_score. Event-driven: a channel's gradients are sums of the output gradients at its spikes, so that work
// falls with the firing rate. The gradients of 64 rows are packed side by side, 4 vectors a lane; a tile of 128 lanes,
// 32 KB, then stays in L1 while the spikes of 64 channels are added up, from lists that serve up to 4 such pieces.
#include "esl/block_score.h"

#include "esl/panels.h"
#include "esl/parallel.h"

namespace esl::ESL_ISA {
namespace {

constexpr int kPiece = 64;                   // rows of a tile
constexpr int kPieces = 4;                   // at a time, at most
constexpr int64_t kPacked = 2 << 20;         // bytes of packed gradients, unless one piece takes more
constexpr int kTile = 2;                     // words: lanes of a tile / 64
constexpr int kSpan = 64;                    // channels at a time
constexpr int64_t kWorkPerThread = 1 << 15;  // (lane, channel) pairs worth a second thread

// 64 lanes of one call. The packed rows of its lanes stand in Scratch::row.
struct Group {
  const uint64_t* words;  // [cols]
  int64_t quarters;
};

struct Scratch {
  int64_t groups = 0, rows = 0;  // of all calls together
  int pieces;                    // packed together
  float* packed;                 // [pieces, rows, 64]
  Group* group;                  // [groups]
  int32_t* row;                  // [groups, 64]

  explicit Scratch(const BlockScore& p) {
    for (int64_t i = 0; i < p.call_count; ++i) {
      groups += p.calls[i].lanes.groups();
      rows += p.calls[i].lanes.rows();
    }
    pieces = 1;  // a power of two, so that a block of 128 rows never straddles two tasks
    while (pieces < kPieces && pieces * kPiece < p.count * p.bm && pieces * 2 * rows * kPiece * 4 <= kPacked)
      pieces *= 2;
    packed = static_cast<float*>(p.scratch);
    group = reinterpret_cast<Group*>(static_cast<char*>(p.scratch) + packed_bytes());
    row = reinterpret_cast<int32_t*>(group + groups);
  }
  int64_t packed_bytes() const { return pieces * rows * kPiece * 4; }
  int64_t bytes() const { return 64 + packed_bytes() + groups * static_cast<int64_t>(sizeof(Group) + kWord * 4); }
  float* piece(int k) const { return packed + k * rows * kPiece; }

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

// Columns [first, last) of a call's gradient, scaled, side by side in pieces of 64; zero up to the end of the last one.
template <class T>
void pack_gradient(const Scratch& s, const ScoreCall& call, int64_t base, int64_t rows, int64_t first, int64_t last,
                   int threads) {
  const T* const grad = static_cast<const T*>(call.grad);
  const f32x16 scale = set1(call.scale);
  parallel_for(0, call.lanes.rows(), threads, [&](int64_t r) {
    const T* const from = grad + r * rows;
    for (int64_t c = first; c < last; c += kPiece) {
      float* const to = s.piece(static_cast<int>((c - first) / kPiece)) + (base + r) * kPiece;
      const int n = static_cast<int>(min(kPiece, last - c));
      for (int i = 0; i < kPiece; i += 16)
        store(to + i, n - i >= 16 ? scale * load(from + c + i) : n > i ? scale * load(from + c + i, n - i) : zero());
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
      n += count_ones(bits);
    }
#else
    for (; word; word &= word - 1) list[n++] = row[lowest_one(word)];
#endif
  }
  return n;
}

// sum[64] += packed rows. Two sums side by side, so that an addition need not wait for the one before it.
inline void add_rows(const float* packed, const int32_t* list, int n, float* sum) {
  f32x16 even[4], odd[4];
  for (int v = 0; v < 4; ++v) even[v] = load(sum + v * 16);
  for (int v = 0; v < 4; ++v) odd[v] = zero();
  int i = 0;
  for (; i + 1 < n; i += 2) {
    const float* const a = packed + int64_t{list[i]} * kPiece;
    const float* const b = packed + int64_t{list[i + 1]} * kPiece;
    for (int v = 0; v < 4; ++v) even[v] = even[v] + load(a + v * 16);
    for (int v = 0; v < 4; ++v) odd[v] = odd[v] + load(b + v * 16);
  }
  if (i < n)
    for (int v = 0; v < 4; ++v) even[v] = even[v] + load(packed + int64_t{list[i]} * kPiece + v * 16);
  for (int v = 0; v < 4; ++v) store(sum + v * 16, even[v] + odd[v]);
}

inline f32x16 magnitude(f32x16 a) {
  float v[16];
  store(v, a);
  for (float& x : v) x = x < 0 ? -x : x;
  return load(v);
}

// sum[k][channel - c0][64 rows]: the gradients of channels [c0, c1) in piece first + k.
void gradients(const Scratch& s, int first, int pieces, int64_t c0, int64_t c1, float (*sum)[kSpan][kPiece]) {
  const int span = static_cast<int>(c1 - c0);
  for (int k = 0; k < pieces; ++k) std::memset(sum[k], 0, static_cast<size_t>(span) * sizeof(sum[k][0]));
  int32_t list[kSpan * kTile * kWord + 16];
  int start[kSpan + 1] = {};
  for (int64_t g = 0; g < s.groups; g += kTile) {
    const int64_t words = min(kTile, s.groups - g);
    for (int c = 0; c < span; ++c)
      start[c + 1] = start[c] + list_spikes(s.group + g, words, c0 + c, s.row + g * kWord, list + start[c]);
    for (int k = 0; k < pieces; ++k)
      for (int c = 0; c < span; ++c)
        if (const int n = start[c + 1] - start[c]) add_rows(s.piece(first + k), list + start[c], n, sum[k][c]);
  }
}

// Scores of one piece of rows [first, first + width) from the sums of |G| over each of some column blocks.
void write_scores(const BlockScore& p, int64_t first, int width, int64_t b0, int64_t blocks, float (*sum)[kPiece]) {
  const int64_t col_blocks = ceil_div(p.cols, p.bn), height = min(p.bm, kPiece);
  for (int64_t base = 0; base < blocks; base += 16) {
    const int64_t n = min(16, blocks - base);
    float channels[16], by_row[kPiece][16];
    for (int64_t b = 0; b < n; ++b) channels[b] = static_cast<float>(min(p.bn, p.cols - (b0 + base + b) * p.bn));
    for (int q = 0; q < kPiece; q += 16) {
      f32x16 m[16];
      for (int b = 0; b < 16; ++b) m[b] = b < n ? load(sum[base + b] + q) : zero();
      transpose(m);
      for (int r = 0; r < 16; ++r) store(by_row[q + r], m[r]);
    }
    for (int64_t r = 0; r < width; r += height) {
      f32x16 total = load(by_row[r]);
      for (int64_t k = 1; k < height; ++k) total = total + load(by_row[r + k]);
      float value[16];
      store(value, total);
      const int64_t row_block = (first + r) / p.bm, begin = row_block * p.bm, end = min(begin + p.bm, p.rows);
      float* const out = p.scores + (row_block - p.first) * col_blocks + b0 + base;
      // A block taller than a piece is finished by its last one.
      const bool starts = first + r == begin, ends = first + r + height >= end;
      for (int64_t b = 0; b < n; ++b) {
        const float so_far = starts ? value[b] : out[b] + value[b];
        out[b] = ends ? so_far / (static_cast<float>(end - begin) * channels[b]) : so_far;
      }
    }
  }
}

// Rows [first, last) of the packed pieces from `piece` on, and column blocks [b0, b0 + blocks): 64 channels, or a
// block.
void score(const BlockScore& p, const Scratch& s, int piece, int64_t first, int64_t last, int64_t b0, int64_t blocks) {
  const int pieces = static_cast<int>(ceil_div(last - first, kPiece));
  alignas(64) float gradient[kPieces][kSpan][kPiece], sum[kPieces][kSpan][kPiece];
  for (int k = 0; k < pieces; ++k) std::memset(sum[k], 0, static_cast<size_t>(blocks) * sizeof(sum[k][0]));
  const int64_t end = min((b0 + blocks) * p.bn, p.cols);
  for (int64_t c0 = b0 * p.bn; c0 < end; c0 += kSpan) {
    const int64_t c1 = min(c0 + kSpan, end);
    gradients(s, piece, pieces, c0, c1, gradient);
    for (int k = 0; k < pieces; ++k)
      for (int64_t c = c0; c < c1; ++c) {
        float* const total = sum[k][c / p.bn - b0];
        for (int r = 0; r < kPiece; r += 16)
          store(total + r, load(total + r) + magnitude(load(gradient[k][c - c0] + r)));
      }
  }
  for (int k = 0; k < pieces; ++k) {
    const int64_t row = first + k * kPiece;
    write_scores(p, row, static_cast<int>(min(kPiece, last - row)), b0, blocks, sum[k]);
  }
}

}  // namespace

int64_t block_score_scratch(const BlockScore& p) { return Scratch(p).bytes(); }

void block_score(const BlockScore& p) {
  Scratch s(p);
  s.index(p);
  const int64_t col_blocks = ceil_div(p.cols, p.bn), end = min((p.first + p.count) * p.bm, p.rows);
  const int threads = static_cast<int>(min(p.threads, 1 + s.groups * kWord * p.cols / kWorkPerThread));
  const int64_t blocks = ceil_div(kSpan, p.bn), spans = ceil_div(col_blocks, blocks);
  // A task takes all pieces, so that its lists serve them all, unless that leaves threads idle.
  const int64_t whole = p.bm > kPiece ? p.bm / kPiece : 1;
  const int64_t together = spans >= int64_t{2} * threads ? s.pieces : min(s.pieces, whole);
  for (int64_t first = p.first * p.bm; first < end; first += s.pieces * kPiece) {
    const int64_t last = min(first + s.pieces * kPiece, end), height = together * kPiece;
    int64_t base = 0;
    for (int64_t i = 0; i < p.call_count; ++i) {
      const auto pack = p.calls[i].dtype == Dtype::f32 ? pack_gradient<float> : pack_gradient<bf16>;
      pack(s, p.calls[i], base, p.rows, first, last, threads);
      base += p.calls[i].lanes.rows();
    }
    parallel_for_dynamic(0, spans * ceil_div(last - first, height), threads, 1, [&](int64_t task) {
      const int64_t b0 = task % spans * blocks, k = task / spans, row = first + k * height;
      score(p, s, static_cast<int>(k * together), row, min(row + height, last), b0, min(blocks, col_blocks - b0));
    });
  }
}

int64_t count_spikes(const uint64_t* words, int64_t count) {
  int64_t n = 0;
  for (int64_t i = 0; i < count; ++i) n += count_ones(words[i]);
  return n;
}

}  // namespace esl::ESL_ISA
