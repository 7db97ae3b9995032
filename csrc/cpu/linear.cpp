// Op linear. Work is cut into strips of 16 output channels x 64 lanes; a strip is accumulated in L1 and leaves once, as
// rows (transposed on the way) or as a panel. Inside a strip, tiles of up to 4 channels x 4 vectors live in registers.
//
// Floor, per active weight and 64 lanes: forward on spikes 4 masked adds, or 1 permute + 1 add per 4 weights by tables;
// gradients 4 fused multiply-adds or masked adds each. docs/decisions.md has the figures.
#include "esl/linear.h"

#include "esl/panels.h"
#include "esl/parallel.h"
#include "esl/tiles.h"

namespace esl::ESL_ISA {
namespace {

constexpr int kStrip = 16;          // output channels per strip
constexpr int kForwardGroups = 16;  // groups that share one set of tables: their strips are 64 KB, in L2
constexpr int kGradGroups = 32;     // groups per partial sum of a weight gradient: 4 rows of them fit in L1
constexpr int kGradGroupsFloat = 8;
constexpr int64_t kWorkPerThread = 1 << 17;  // multiply-adds worth a second thread

// One direction of the product: out[o] += w * source[s], with the blocks listed by output block.
struct Side {
  const int32_t *ptr, *block, *offset;  // offset null: a block stands where it is listed
  int64_t outs, sources;                // channels
  int64_t bo, bs;                       // block extent along outputs and along sources
  int64_t wo, ws;                       // stride of a weight along outputs and along sources
  const float* values;
  int64_t block_size;

  const float* weights(int64_t p) const { return values + (offset ? offset[p] : p) * block_size; }
  int64_t strips() const { return ceil_div(outs, kStrip); }
};

Side by_rows(const BlockSparse& w) {
  return {w.crow, w.col, nullptr, w.rows, w.cols, w.bm, w.bn, w.bn, 1, w.values, w.bm * w.bn};
}
Side by_cols(const BlockSparse& w) {
  return {w.ccol, w.row_t, w.offset_t, w.cols, w.rows, w.bn, w.bm, 1, w.bn, w.values, w.bm * w.bn};
}

int useful_threads(const BlockSparse& w, const Lanes& lanes, int threads) {
  const int32_t* ptr = w.crow ? w.crow : w.ccol;
  const int64_t blocks = ptr[w.crow ? ceil_div(w.rows, w.bm) : ceil_div(w.cols, w.bn)];
  const int64_t useful = 1 + (blocks * w.bm * w.bn + w.rows + w.cols) * lanes.count() / kWorkPerThread;
  return static_cast<int>(min(threads, useful));
}

// A strip leaves: 16 channels x 64 lanes at `tile`, channel stride `stride`, to channels [o, o + n) of group g.
void emit(const float* tile, int64_t stride, const Activation& y, int64_t channels, const LaneRows& lanes, int64_t g,
          int64_t o, int n, bool zero_padding) {
  if (y.panels) {
    float* out = static_cast<float*>(y.data) + (g * channels + o) * kWord;
    for (int k = 0; k < n; ++k) {
      std::memcpy(out + k * kWord, tile + k * stride, kWord * sizeof(float));
      if (zero_padding)
        for (int l = 0; l < kWord; ++l)
          if (lanes.row[l] < 0) out[k * kWord + l] = 0.f;
    }
    return;
  }
  for (int q = 0; q < lanes.quarters; ++q) {
    if (y.dtype == Dtype::f32)
      panel_to_rows(tile + q * 16, stride, static_cast<float*>(y.data), channels, lanes.row + q * 16, o, n);
    else
      panel_to_rows(tile + q * 16, stride, static_cast<bf16*>(y.data), channels, lanes.row + q * 16, o, n);
  }
}

// ---- tiles: TM outputs x R vectors, accumulators in registers. Overhanging outputs compute garbage that never leaves;
// overhanging sources are not visited.

// Float sources: panel [sources, 64], from lane 16 * q on.
struct FloatTile {
  template <int TM, int R>
  static void run(const Side& s, int64_t ob, int64_t inside, const float* panel, int q, float* tile) {
    f32x16 acc[TM][R];
    for (int i = 0; i < TM; ++i)
      for (int j = 0; j < R; ++j) acc[i][j] = load(tile + i * kWord + (q + j) * 16);
    for (int64_t p = s.ptr[ob]; p < s.ptr[ob + 1]; ++p) {
      const int64_t first = s.block[p] * s.bs, n = min(s.bs, s.sources - first);
      const float* x = panel + first * kWord + q * 16;
      const float* v = s.weights(p) + inside * s.wo;
      for (int64_t c = 0; c < n; ++c, x += kWord, v += s.ws) {
        f32x16 source[R];
        for (int j = 0; j < R; ++j) source[j] = load(x + j * 16);
        for (int i = 0; i < TM; ++i) {
          const f32x16 weight = set1(v[i * s.wo]);
          for (int j = 0; j < R; ++j) acc[i][j] = fmadd(source[j], weight, acc[i][j]);
        }
      }
    }
    for (int i = 0; i < TM; ++i)
      for (int j = 0; j < R; ++j) store(tile + i * kWord + (q + j) * 16, acc[i][j]);
  }
};

// Spikes: words [sources] of one group as 16-bit quarters.
struct SpikeTile {
  template <int TM, int R>
  static void run(const Side& s, int64_t ob, int64_t inside, const uint64_t* words, int q, float* tile) {
    f32x16 acc[TM][R];
    for (int i = 0; i < TM; ++i)
      for (int j = 0; j < R; ++j) acc[i][j] = load(tile + i * kWord + (q + j) * 16);
    for (int64_t p = s.ptr[ob]; p < s.ptr[ob + 1]; ++p) {
      const int64_t first = s.block[p] * s.bs, n = min(s.bs, s.sources - first);
      const float* v = s.weights(p) + inside * s.wo;
      for (int64_t c = 0; c < n; ++c, v += s.ws) {
        uint16_t bits[4];
        std::memcpy(bits, words + first + c, 8);
        for (int i = 0; i < TM; ++i) {
          const f32x16 weight = set1(v[i * s.wo]);
          for (int j = 0; j < R; ++j) acc[i][j] = add_where(acc[i][j], bits[q + j], weight);
        }
      }
    }
    for (int i = 0; i < TM; ++i)
      for (int j = 0; j < R; ++j) store(tile + i * kWord + (q + j) * 16, acc[i][j]);
  }
};

// One strip of one group through tiles of min(bo, 4) outputs.
template <class Tile, class Source>
void strip_tiles(const Side& s, int64_t strip, const Source* source, int quarters, float* strip_tile) {
  const int64_t first = strip * kStrip, n = min(kStrip, s.outs - first), tm = min(4, s.bo);
  for (int64_t o = 0; o < n; o += tm) {
    const int64_t ob = (first + o) / s.bo, inside = (first + o) % s.bo;
    float* tile = strip_tile + o * kWord;
    for (int q = 0; q < quarters;) {
      const bool wide = q + kTileVectors <= quarters;
      switch (tm * 2 + wide) {
        case 3:
          Tile::template run<1, kTileVectors>(s, ob, inside, source, q, tile);
          break;
        case 5:
          Tile::template run<2, kTileVectors>(s, ob, inside, source, q, tile);
          break;
        case 9:
          Tile::template run<4, kTileVectors>(s, ob, inside, source, q, tile);
          break;
        case 2:
          Tile::template run<1, 1>(s, ob, inside, source, q, tile);
          break;
        case 4:
          Tile::template run<2, 1>(s, ob, inside, source, q, tile);
          break;
        default:
          Tile::template run<4, 1>(s, ob, inside, source, q, tile);
          break;
      }
      q += wide ? kTileVectors : 1;
    }
  }
}

void start_strip(const float* bias, int64_t o, int64_t n, float* tile) {
  for (int64_t k = 0; k < kStrip; ++k) {
    const f32x16 b = set1(bias && k < n ? bias[o + k] : 0.f);
    for (int j = 0; j < 4; ++j) store(tile + k * kWord + j * 16, b);
  }
}

#if defined(ESL_ISA_AVX512)
// Spikes, all 64 lanes of NG groups: what few outputs leave of the registers, more groups fill, and each weight and
// each index entry is read once for all of them.
template <int TM, int NG>
void spike_groups(const Side& s, int64_t ob, int64_t inside, const uint64_t* words, float* tile) {
  constexpr int kGroupTile = kStrip * kWord;
  f32x16 acc[TM][NG][4];
  for (int i = 0; i < TM; ++i)
    for (int g = 0; g < NG; ++g)
      for (int j = 0; j < 4; ++j) acc[i][g][j] = load(tile + g * kGroupTile + i * kWord + j * 16);
  for (int64_t p = s.ptr[ob]; p < s.ptr[ob + 1]; ++p) {
    const int64_t first = s.block[p] * s.bs, n = min(s.bs, s.sources - first);
    const float* v = s.weights(p) + inside * s.wo;
    for (int64_t c = 0; c < n; ++c, v += s.ws)
      for (int g = 0; g < NG; ++g) {
        const auto* bits = reinterpret_cast<const uint16_t*>(words + g * s.sources + first + c);
        for (int i = 0; i < TM; ++i) {
          const f32x16 weight = set1(v[i * s.wo]);
          for (int j = 0; j < 4; ++j) acc[i][g][j] = add_where(acc[i][g][j], bits + j, weight);
        }
      }
  }
  for (int i = 0; i < TM; ++i)
    for (int g = 0; g < NG; ++g)
      for (int j = 0; j < 4; ++j) store(tile + g * kGroupTile + i * kWord + j * 16, acc[i][g][j]);
}

// One strip of `full` groups that have all 64 lanes; words [groups, sources].
template <int TM, int NG>
void spike_strip_of(const Side& s, int64_t strip, const uint64_t* words, int64_t full, float* tiles) {
  const int64_t first = strip * kStrip, n = min(kStrip, s.outs - first);
  for (int64_t o = 0; o < n; o += TM) {
    const int64_t ob = (first + o) / s.bo, inside = (first + o) % s.bo;
    float* tile = tiles + o * kWord;
    int64_t g = 0;
    for (; g + NG <= full; g += NG)
      spike_groups<TM, NG>(s, ob, inside, words + g * s.sources, tile + g * kStrip * kWord);
    for (; g < full; ++g) spike_groups<TM, 1>(s, ob, inside, words + g * s.sources, tile + g * kStrip * kWord);
  }
}

void spike_strip(const Side& s, int64_t strip, const uint64_t* words, int64_t full, float* tiles) {
  if (s.bo >= 4)
    spike_strip_of<4, 1>(s, strip, words, full, tiles);
  else if (s.bo == 2)
    spike_strip_of<2, 2>(s, strip, words, full, tiles);
  else
    spike_strip_of<1, 4>(s, strip, words, full, tiles);
}

// ---- forward by tables: the 16 sums of 4 weights, chosen per lane by a 4-bit index.

// All channels of group g: nibbles [groups, ceil(channels / 4), 4].
void group_to_nibbles(const uint64_t* words, int64_t channels, int64_t g, uint64_t* nibbles) {
  const int64_t fours = ceil_div(channels, 4);
  for (int64_t f = 0; f < fours; ++f)
    to_nibbles(words + g * channels + f * 4, min(4, channels - f * 4), nibbles + (g * fours + f) * 4);
}

template <int TM, int R>
inline void table_tile(const float* tables, const int64_t* where, int n, const uint64_t* nibbles, int q, float* tile) {
  f32x16 acc[TM][R];
  for (int i = 0; i < TM; ++i)
    for (int j = 0; j < R; ++j) acc[i][j] = load(tile + i * kWord + (q + j) * 16);
  for (int e = 0; e < n; ++e) {
    const uint64_t* bits = nibbles + where[e] + q;
    __m512i index[R];
    for (int j = 0; j < R; ++j) index[j] = nibble_index(bits + j);
    for (int i = 0; i < TM; ++i) {
      const __m512 t = _mm512_load_ps(tables + (e * TM + i) * 16);
      for (int j = 0; j < R; ++j) acc[i][j].v = _mm512_add_ps(acc[i][j].v, _mm512_permutexvar_ps(index[j], t));
    }
  }
  for (int i = 0; i < TM; ++i)
    for (int j = 0; j < R; ++j) store(tile + i * kWord + (q + j) * 16, acc[i][j]);
}

// TM outputs of all groups [g0, g1): tables are built once for all of them.
template <int TM>
void table_rows(const Side& s, int64_t ob, int64_t inside, const uint64_t* nibbles, int64_t g0, int64_t g1,
                int last_quarters, int64_t groups, float* tiles) {
  alignas(64) float tables[kTables * 16];
  int64_t where[kTables];
  const int64_t fours = ceil_div(s.sources, 4);
  int n = 0;
  const auto flush = [&] {
    for (int64_t g = g0; g < g1; ++g) {
      const uint64_t* bits = nibbles + g * fours * 4;
      float* tile = tiles + (g - g0) * kStrip * kWord;
      const int quarters = g + 1 == groups ? last_quarters : 4;
      if (quarters == 4)
        table_tile<TM, 4>(tables, where, n, bits, 0, tile);
      else
        for (int q = 0; q < quarters; ++q) table_tile<TM, 1>(tables, where, n, bits, q, tile);
    }
    n = 0;
  };
  for (int64_t p = s.ptr[ob]; p < s.ptr[ob + 1]; ++p) {
    const int64_t first = s.block[p] * s.bs, valid = min(s.bs, s.sources - first);
    const float* v = s.weights(p) + inside * s.wo;
    for (int64_t c = 0; c < valid; c += 4) {
      build_tables<TM>(v + c, s.wo, valid - c, tables + n * TM * 16);
      where[n++] = first + c;  // 4 words per 4 channels
      if (n * TM == kTables) flush();
    }
  }
  if (n) flush();
}

void table_strip(const Side& s, int64_t strip, const uint64_t* nibbles, int64_t g0, int64_t g1, int last_quarters,
                 int64_t groups, float* tiles) {
  const int64_t first = strip * kStrip, n = min(kStrip, s.outs - first), tm = min(4, s.bo);
  for (int64_t o = 0; o < n; o += tm) {
    const int64_t ob = (first + o) / s.bo, inside = (first + o) % s.bo;
    float* t = tiles + o * kWord;
    if (tm == 4)
      table_rows<4>(s, ob, inside, nibbles, g0, g1, last_quarters, groups, t);
    else if (tm == 2)
      table_rows<2>(s, ob, inside, nibbles, g0, g1, last_quarters, groups, t);
    else
      table_rows<1>(s, ob, inside, nibbles, g0, g1, last_quarters, groups, t);
  }
}
#endif

// ---- forward by events: a lane's spikes are visited one by one, each adds its weights to the lane's row of outputs.
// Work falls with the firing rate; blocks of 16 and more rows make it whole vectors.

// Values as [nnzb, bn, bm] in column order: the weights of one channel in one piece.
void to_columns(const BlockSparse& w, int64_t q, float* out) {
  const float* v = w.values + int64_t{w.offset_t[q]} * w.bm * w.bn;
  for (int64_t c = 0; c < w.bn; ++c)
    for (int64_t r = 0; r < w.bm; ++r) out[(q * w.bn + c) * w.bm + r] = v[r * w.bn + c];
}

template <class T>
void event_group(const LinearForward& p, const float* columns, int64_t g, uint64_t* bits, float* row) {
  const BlockSparse& w = p.w;
  const LaneRows lanes(p.lanes, g);
  const int64_t chunks = ceil_div(w.cols, 64);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {  // to one word per lane and 64 channels
    const int64_t n = min(64, w.cols - chunk * 64);
    std::memcpy(bits + chunk * 64, p.words + g * w.cols + chunk * 64, static_cast<size_t>(n) * 8);
    std::memset(bits + chunk * 64 + n, 0, static_cast<size_t>(64 - n) * 8);
    transpose_bits(bits + chunk * 64);
  }
  for (int l = 0; l < kWord; ++l) {
    if (lanes.row[l] < 0) continue;
    if (p.bias)
      std::memcpy(row, p.bias, static_cast<size_t>(w.rows) * 4);
    else
      std::memset(row, 0, static_cast<size_t>(w.rows) * 4);
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (uint64_t spikes = bits[chunk * 64 + l]; spikes; spikes &= spikes - 1) {
        const int64_t channel = chunk * 64 + lowest_one(spikes);
        const int64_t cb = channel / w.bn, inside = channel % w.bn;
        for (int64_t q = w.ccol[cb]; q < w.ccol[cb + 1]; ++q) {
          const float* v = columns + (q * w.bn + inside) * w.bm;
          float* out = row + w.row_t[q] * w.bm;
          for (int64_t r = 0; r < w.bm; r += kLanes) store(out + r, load(out + r) + load(v + r));
        }
      }
    T* y = static_cast<T*>(p.y.data) + lanes.row[l] * w.rows;
    int64_t r = 0;
    for (; r + kLanes <= w.rows; r += kLanes) store(y + r, load(row + r));
    if (r < w.rows) store(y + r, load(row + r), static_cast<int>(w.rows - r));
  }
}

int64_t padded_rows(const BlockSparse& w) { return ceil_div(w.rows, w.bm) * w.bm; }

struct EventScratch {
  int64_t columns, bits, row;  // bytes; the last two per thread
};

EventScratch event_scratch(const BlockSparse& w) {
  const int64_t blocks = w.ccol[ceil_div(w.cols, w.bn)];
  return {align64(blocks * w.bm * w.bn * 4), ceil_div(w.cols, 64) * 512, align64(padded_rows(w) * 4)};
}

void multiply_events(const LinearForward& p, int threads) {
  const EventScratch size = event_scratch(p.w);
  float* const columns = static_cast<float*>(p.scratch);
  char* const own = static_cast<char*>(p.scratch) + size.columns;
  parallel_for(0, p.w.ccol[ceil_div(p.w.cols, p.w.bn)], threads, [&](int64_t q) { to_columns(p.w, q, columns); });
  parallel_tasks(p.lanes.groups(), threads, [&](int64_t g, int64_t thread) {
    char* const mine = own + thread * (size.bits + size.row);
    auto* const bits = reinterpret_cast<uint64_t*>(mine);
    auto* const row = reinterpret_cast<float*>(mine + size.bits);
    if (p.y.dtype == Dtype::f32)
      event_group<float>(p, columns, g, bits, row);
    else
      event_group<bf16>(p, columns, g, bits, row);
  });
}

// ---- sources as panels

// Words of one group to a float panel: sum of 2^plane * scale where the bit is set.
void words_to_panel(const uint64_t* words, int64_t plane_stride, int planes, float scale, int64_t channels,
                    float* panel) {
  for (int64_t c = 0; c < channels; ++c)
    for (int q = 0; q < 4; ++q) {
      f32x16 v = zero();
      for (int p = 0; p < planes; ++p)
        v = add_where(v, static_cast<uint16_t>(words[p * plane_stride + c] >> (16 * q)),
                      set1(scale * static_cast<float>(1 << p)));
      store(panel + c * kWord + q * 16, v);
    }
}

// Where the float panel of a group comes from: it is there, or it is made from rows or words in scratch.
struct Source {
  Activation x;
  const uint64_t* words;
  int planes;
  float scale;
  int64_t channels;
  Lanes lanes;

  bool in_place() const { return !words && x.panels; }
  const float* panel(int64_t g) const { return static_cast<const float*>(x.data) + g * channels * kWord; }
  void make(int64_t g, float* out) const {
    if (words)
      words_to_panel(words + g * channels, lanes.groups() * channels, planes, scale, channels, out);
    else if (x.dtype == Dtype::f32)
      group_to_panel(static_cast<const float*>(x.data), channels, LaneRows(lanes, g), out);
    else
      group_to_panel(static_cast<const bf16*>(x.data), channels, LaneRows(lanes, g), out);
  }
};

// A panel that is too large for the cache is read in pieces of its channels, and the outputs pass through instead.
// Blocks of 1 x 1 read another 256 bytes with every weight, so theirs is L1; larger ones find L2 fast enough.
int64_t piece_size(const Side& s) {
  if (s.block_size == 1) return s.sources > 192 ? 96 : s.sources;  // 24 KB
  return s.sources > 2048 ? 1024 : s.sources;                      // 256 KB
}
bool in_pieces(const Side& s) { return piece_size(s) < s.sources; }

// Blocks [p, end) of one output block, all 64 lanes; out: the block's first row.
void multiply_range(const Side& s, int64_t p, int64_t end, int64_t n, const float* panel, float* out) {
  if (s.block_size == 1) {
    f32x16 acc[4];
    for (int j = 0; j < 4; ++j) acc[j] = load(out + j * 16);
    for (; p < end; ++p) {
      const f32x16 weight = set1(*s.weights(p));
      const float* x = panel + int64_t{s.block[p]} * kWord;
      for (int j = 0; j < 4; ++j) acc[j] = fmadd(load(x + j * 16), weight, acc[j]);
    }
    for (int j = 0; j < 4; ++j) store(out + j * 16, acc[j]);
    return;
  }
  Side part = s;  // a weight whose only output block has these blocks
  const int32_t range[2] = {static_cast<int32_t>(p), static_cast<int32_t>(end)};
  part.ptr = range;
  const int64_t tm = min(4, s.bo);
  for (int64_t o = 0; o < n; o += tm)
    for (int q = 0; q < 4; q += kTileVectors) {
      float* tile = out + o * kWord;
      if (tm == 4)
        FloatTile::run<4, kTileVectors>(part, 0, o, panel, q, tile);
      else if (tm == 2)
        FloatTile::run<2, kTileVectors>(part, 0, o, panel, q, tile);
      else
        FloatTile::run<1, kTileVectors>(part, 0, o, panel, q, tile);
    }
}

// out [outs + 3, 64]: tiles of 4 may overhang. cursor: how far each output block's list has been read.
void multiply_in_pieces(const Side& s, const float* panel, const float* bias, float* out, int32_t* cursor) {
  for (int64_t o = 0; o < s.outs; ++o) {
    const f32x16 b = set1(bias ? bias[o] : 0.f);
    for (int j = 0; j < 4; ++j) store(out + o * kWord + j * 16, b);
  }
  const int64_t blocks = ceil_div(s.outs, s.bo), piece = piece_size(s);
  for (int64_t ob = 0; ob < blocks; ++ob) cursor[ob] = s.ptr[ob];
  for (int64_t end = piece; end < s.sources + piece; end += piece)
    for (int64_t ob = 0; ob < blocks; ++ob) {
      const int32_t p = cursor[ob];
      int32_t q = p;
      while (q < s.ptr[ob + 1] && s.block[q] * s.bs < end) ++q;
      if (q > p) multiply_range(s, p, q, min(s.bo, s.outs - ob * s.bo), panel, out + ob * s.bo * kWord);
      cursor[ob] = q;
    }
}

// Bytes per thread that multiply() needs beside the panels.
int64_t multiply_bytes(const Side& s) {
  return in_pieces(s) ? align64((s.outs + 3) * kWord * 4) + align64(ceil_div(s.outs, s.bo) * 4) : 0;
}

// out = sum over blocks of w * source, from float panels. Groups go to threads in contiguous shares, so that a panel
// made by a thread is multiplied by it while in L2; fewer groups than threads are cut by strips instead. `panels`
// [slots, sources, 64]: a slot per group if slots == groups (kept for the caller), else one per thread. `own`:
// multiply_bytes() for each thread.
void multiply(const Side& s, const Source& source, const float* bias, const Activation& y, bool zero_padding,
              float* panels, int64_t slots, char* own, int threads) {
  const int64_t groups = source.lanes.groups(), strips = s.strips(), panel_size = s.sources * kWord;
  const bool by_group = groups >= threads;
  const auto run = [&](int64_t g, const float* panel, int64_t strip0, int64_t strip1) {
    const LaneRows lanes(source.lanes, g);
    alignas(64) float tile[kStrip * kWord];
    for (int64_t strip = strip0; strip < strip1; ++strip) {
      const int64_t o = strip * kStrip, n = min(kStrip, s.outs - o);
      start_strip(bias, o, n, tile);
      strip_tiles<FloatTile>(s, strip, panel, lanes.quarters, tile);
      emit(tile, kWord, y, s.outs, lanes, g, o, static_cast<int>(n), zero_padding);
    }
  };
  if (by_group) {
    parallel_for(0, threads, threads, [&](int64_t t) {
      for (int64_t g = groups * t / threads; g < groups * (t + 1) / threads; ++g) {
        const float* panel = source.panel(g);
        if (!source.in_place()) {
          float* made = panels + (slots == groups ? g : t) * panel_size;
          source.make(g, made);
          panel = made;
        }
        if (in_pieces(s)) {
          float* const out = reinterpret_cast<float*>(own + t * multiply_bytes(s));
          multiply_in_pieces(s, panel, bias, out, reinterpret_cast<int32_t*>(out + (s.outs + 3) * kWord));
          const LaneRows lanes(source.lanes, g);
          for (int64_t o = 0; o < s.outs; o += kStrip)
            emit(out + o * kWord, kWord, y, s.outs, lanes, g, o, static_cast<int>(min(kStrip, s.outs - o)),
                 zero_padding);
        } else {
          run(g, panel, 0, strips);
        }
      }
    });
    return;
  }
  if (!source.in_place()) parallel_for(0, groups, threads, [&](int64_t g) { source.make(g, panels + g * panel_size); });
  const int64_t cuts = min(strips, threads);
  parallel_for(0, groups * cuts, threads, [&](int64_t task) {
    const int64_t g = task / cuts, cut = task % cuts;
    run(g, source.in_place() ? source.panel(g) : panels + g * panel_size, strips * cut / cuts,
        strips * (cut + 1) / cuts);
  });
}

// ---- forward on spikes

// Firing rate below which events beat tables and masked adds, for blocks that suit events (docs/decisions.md).
constexpr double kEventsBeatTables = 0.05, kEventsBeatMasked = kHasTables ? 0.08 : 0.2;

SpikeKernel choose_kernel(const LinearForward& p) {
  const bool can_events = p.w.bm % kLanes == 0 && !p.y.panels;
  const bool can_tables = kHasTables && p.w.bn % 4 == 0;
  if (p.kernel == SpikeKernel::events && can_events) return p.kernel;
  if (p.kernel == SpikeKernel::masked) return p.kernel;
  if (p.kernel == SpikeKernel::automatic && can_events) {
    const int64_t words = p.lanes.groups() * p.w.cols;
    int64_t spikes = 0;
    for (int64_t i = 0; i < words; ++i) spikes += count_ones(p.words[i]);
    const double rate = can_tables ? kEventsBeatTables : kEventsBeatMasked;
    if (static_cast<double>(spikes) < rate * static_cast<double>(words) * kWord) return SpikeKernel::events;
  }
  return can_tables ? SpikeKernel::tables : SpikeKernel::masked;
}

bool binary(const uint64_t* words, int planes, float scale) { return words && planes == 1 && scale == 1.f; }

int64_t strip_size(int64_t groups) { return min(groups, kForwardGroups) * kStrip * kWord; }
int64_t strip_bytes(int64_t groups, int threads) { return threads * strip_size(groups) * 4; }
int64_t nibble_bytes(int64_t groups, int64_t channels) { return groups * ceil_div(channels, 4) * 32; }

void multiply_spikes(const LinearForward& p, int threads, SpikeKernel kernel) {
  const Side s = by_rows(p.w);
  const int64_t groups = p.lanes.groups(), strips = s.strips(), chunks = ceil_div(groups, kForwardGroups);
  float* const strip_scratch = static_cast<float*>(p.scratch);
#if defined(ESL_ISA_AVX512)
  const bool tables = kernel == SpikeKernel::tables;
  auto* const nibbles = reinterpret_cast<uint64_t*>(static_cast<char*>(p.scratch) + strip_bytes(groups, threads));
  if (tables) parallel_for(0, groups, threads, [&](int64_t g) { group_to_nibbles(p.words, p.w.cols, g, nibbles); });
  const int last_quarters = groups ? LaneRows(p.lanes, groups - 1).quarters : 0;
#else
  (void)kernel;
#endif
  parallel_tasks(chunks * strips, threads, [&](int64_t task, int64_t thread) {
    const int64_t g0 = task / strips * kForwardGroups, g1 = min(groups, g0 + kForwardGroups), strip = task % strips;
    const int64_t o = strip * kStrip, n = min(kStrip, s.outs - o);
    float* const tiles = strip_scratch + thread * strip_size(groups);
    for (int64_t g = g0; g < g1; ++g) start_strip(p.bias, o, n, tiles + (g - g0) * kStrip * kWord);
    int64_t done = g0;  // groups that are multiplied
#if defined(ESL_ISA_AVX512)
    if (tables) {
      table_strip(s, strip, nibbles, g0, g1, last_quarters, groups, tiles);
      done = g1;
    } else {
      done = g1 == groups && last_quarters < 4 ? g1 - 1 : g1;
      spike_strip(s, strip, p.words + g0 * p.w.cols, done - g0, tiles);
    }
#endif
    for (int64_t g = g0; g < g1; ++g) {
      const LaneRows lanes(p.lanes, g);
      float* tile = tiles + (g - g0) * kStrip * kWord;
      if (g >= done) strip_tiles<SpikeTile>(s, strip, p.words + g * p.w.cols, lanes.quarters, tile);
      emit(tile, kWord, p.y, s.outs, lanes, g, o, static_cast<int>(n), false);
    }
  });
}

// ---- weight gradient: for a strip of 16 rows and a fixed chunk of groups, each block's sum over lanes. Chunks are
// added in order by the one thread that owns the strip: bits do not depend on the number of threads.

// Words [groups, channels] to [ceil(channels / 4), groups, 4]: a block's masks then stand in one piece.
void to_channel_major(const uint64_t* words, int64_t channels, int64_t groups, int64_t f, uint64_t* out) {
  const int64_t n = min(4, channels - f * 4);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t k = 0; k < 4; ++k) out[(f * groups + g) * 4 + k] = k < n ? words[g * channels + f * 4 + k] : 0;
}

// y: TM rows at stride `stride`, 64 lanes per group. words: TN of each group, groups 4 words apart.
template <int TM, int TN>
inline void spike_gradient(const float* y, int64_t stride, const uint64_t* words, int64_t groups, float* out) {
  constexpr int N = TM * TN, S = kSets<N>;
  f32x16 acc[S][N];
  for (int s = 0; s < S; ++s)
    for (int i = 0; i < N; ++i) acc[s][i] = zero();
  for (int64_t g = 0; g < groups; ++g) {
    const auto* bits = reinterpret_cast<const uint16_t*>(words + g * 4);
    for (int q = 0; q < 4; ++q) {
      f32x16 rows[TM];
      for (int i = 0; i < TM; ++i) rows[i] = load(y + i * stride + g * kWord + q * 16);
      f32x16* sum = acc[q % S];
      for (int k = 0; k < TN; ++k)
        for (int i = 0; i < TM; ++i) sum[i * TN + k] = add_where(sum[i * TN + k], bits + k * 4 + q, rows[i]);
    }
  }
  sum_sets<N>(acc, out);
}

// x: TN channels, 64 apart; groups `x_stride` apart.
template <int TM, int TN>
inline void float_gradient(const float* y, int64_t stride, const float* x, int64_t x_stride, int64_t groups,
                           float* out) {
  constexpr int N = TM * TN, S = kSets<N>;
  f32x16 acc[S][N];
  for (int s = 0; s < S; ++s)
    for (int i = 0; i < N; ++i) acc[s][i] = zero();
  for (int64_t g = 0; g < groups; ++g)
    for (int q = 0; q < 4; ++q) {
      f32x16 rows[TM];
      for (int i = 0; i < TM; ++i) rows[i] = load(y + i * stride + g * kWord + q * 16);
      f32x16* sum = acc[q % S];
      for (int k = 0; k < TN; ++k) {
        const f32x16 source = load(x + g * x_stride + k * kWord + q * 16);
        for (int i = 0; i < TM; ++i) sum[i * TN + k] = fmadd(rows[i], source, sum[i * TN + k]);
      }
    }
  sum_sets<N>(acc, out);
}

struct GradSource {
  const uint64_t* words;  // [ceil(cols / 4), groups, 4], or null
  const float* panels;    // [groups, cols, 64]
  int64_t groups, cols;
};

// Gradients of TM rows of block p, for groups [g0, g1), added to (or, in the first chunk, written to) dv.
template <int TM, int TN>
void block_gradient(const GradSource& x, const float* y, int64_t stride, int64_t g0, int64_t g1, int64_t first,
                    int64_t bn, int64_t rows, float* dv) {
  for (int64_t c = 0; c < bn; c += TN) {
    const int64_t channel = first + c, valid = min(TN, x.cols - channel);
    float part[TM * TN] = {};
    if (valid > 0) {
      if (x.words) {
        const uint64_t* words = x.words + (channel / 4 * x.groups + g0) * 4 + channel % 4;
        spike_gradient<TM, TN>(y, stride, words, g1 - g0, part);
      } else if (valid == TN) {
        const float* panel = x.panels + (g0 * x.cols + channel) * kWord;
        float_gradient<TM, TN>(y, stride, panel, x.cols * kWord, g1 - g0, part);
      } else {
        float column[TM];
        for (int64_t k = 0; k < valid; ++k) {
          const float* panel = x.panels + (g0 * x.cols + channel + k) * kWord;
          float_gradient<TM, 1>(y, stride, panel, x.cols * kWord, g1 - g0, column);
          for (int i = 0; i < TM; ++i) part[i * TN + k] = column[i];
        }
      }
    }
    for (int64_t i = 0; i < TM; ++i)
      for (int64_t k = 0; k < TN; ++k) {
        const float v = i < rows && k < valid ? part[i * TN + k] : 0.f;
        float* out = dv + i * bn + c + k;
        *out = g0 ? *out + v : v;
      }
  }
}

void strip_gradient(const LinearBackward& p, const GradSource& x, const float* y, int64_t stride, int64_t strip,
                    int64_t g0, int64_t g1) {
  const BlockSparse& w = p.w;
  const int64_t o = strip * kStrip, tm = min(4, w.bm), tn = min(kTileColumns, w.bn);
  // A block's overhanging rows may reach past the last strip row that exists: they belong to the last strip.
  const int64_t end = min(kStrip, ceil_div(w.rows, w.bm) * w.bm - o);
  for (int64_t r = 0; r < end; r += tm) {
    const int64_t rb = (o + r) / w.bm, inside = (o + r) % w.bm, rows = w.rows - (o + r);
    const float* tile = y + r * stride;
    for (int64_t q = w.crow[rb]; q < w.crow[rb + 1]; ++q) {
      float* dv = p.grad_values + q * w.bm * w.bn + inside * w.bn;
      const int64_t first = w.col[q] * w.bn;
      switch (tm * 8 + tn) {
        case 9:
          block_gradient<1, 1>(x, tile, stride, g0, g1, first, w.bn, rows, dv);
          break;
        case 10:
          block_gradient<1, 2>(x, tile, stride, g0, g1, first, w.bn, rows, dv);
          break;
        case 12:
          block_gradient<1, 4>(x, tile, stride, g0, g1, first, w.bn, rows, dv);
          break;
        case 17:
          block_gradient<2, 1>(x, tile, stride, g0, g1, first, w.bn, rows, dv);
          break;
        case 18:
          block_gradient<2, 2>(x, tile, stride, g0, g1, first, w.bn, rows, dv);
          break;
        case 20:
          block_gradient<2, 4>(x, tile, stride, g0, g1, first, w.bn, rows, dv);
          break;
        case 33:
          block_gradient<4, 1>(x, tile, stride, g0, g1, first, w.bn, rows, dv);
          break;
        case 34:
          block_gradient<4, 2>(x, tile, stride, g0, g1, first, w.bn, rows, dv);
          break;
        default:
          block_gradient<4, 4>(x, tile, stride, g0, g1, first, w.bn, rows, dv);
          break;
      }
    }
  }
}

void strip_bias(const float* y, int64_t stride, int64_t lanes, int64_t n, bool add, float* out) {
  for (int64_t r = 0; r < n; ++r) {
    f32x16 acc = zero();
    for (int64_t l = 0; l < lanes; l += 16) acc = acc + load(y + r * stride + l);
    out[r] = add ? out[r] + sum(acc) : sum(acc);
  }
}

// grad: panels [groups, rows, 64].
void weight_gradient(const LinearBackward& p, const GradSource& x, const float* grad, int chunk, float* scratch,
                     int threads) {
  const int64_t groups = p.lanes.groups(), stride = min(groups, chunk) * kWord;
  const int64_t strips = ceil_div(ceil_div(p.w.rows, p.w.bm) * p.w.bm, kStrip);
  parallel_tasks(strips, threads, [&](int64_t strip, int64_t thread) {
    float* y = scratch + thread * kStrip * stride;
    const int64_t o = strip * kStrip, n = min(kStrip, p.w.rows - o);
    for (int64_t g0 = 0; g0 == 0 || g0 < groups; g0 += chunk) {
      const int64_t g1 = min(groups, g0 + chunk);
      for (int64_t r = 0; r < kStrip; ++r)
        for (int64_t g = g0; g < g1; ++g)
          if (r < n)
            std::memcpy(y + r * stride + (g - g0) * kWord, grad + (g * p.w.rows + o + r) * kWord, kWord * 4);
          else
            std::memset(y + r * stride + (g - g0) * kWord, 0, kWord * 4);
      if (p.grad_values) strip_gradient(p, x, y, stride, strip, g0, g1);
      if (p.grad_bias && n > 0) strip_bias(y, stride, (g1 - g0) * kWord, n, g0 > 0, p.grad_bias + o);
    }
  });
}

struct BackwardScratch {
  int64_t grad_panels, x_panels, words, strips, own, total;
};

BackwardScratch backward_scratch(const LinearBackward& p) {
  const int64_t groups = p.lanes.groups();
  const int threads = useful_threads(p.w, p.lanes, p.threads);
  const bool sums = p.grad_values || p.grad_bias;
  const bool spikes = binary(p.words, p.planes, p.scale);
  BackwardScratch s{};
  s.grad_panels = p.grad.panels ? 0 : align64(groups * p.w.rows * kWord * 4);
  s.x_panels = p.grad_values && !spikes && !(!p.words && p.x.panels) ? align64(groups * p.w.cols * kWord * 4) : 0;
  s.words = p.grad_values && spikes ? align64(nibble_bytes(groups, p.w.cols)) : 0;
  s.strips = sums ? threads * kStrip * min(groups, kGradGroups) * kWord * 4 : 0;
  s.own = p.grad_x.data ? threads * multiply_bytes(by_cols(p.w)) : 0;
  s.total = s.grad_panels + s.x_panels + s.words + s.strips + s.own;
  return s;
}

}  // namespace

int64_t linear_forward_scratch(const LinearForward& p) {
  const int64_t groups = p.lanes.groups();
  const int threads = useful_threads(p.w, p.lanes, p.threads);
  if (binary(p.words, p.planes, p.scale)) {
    // The kernel is chosen by the spikes, which are not packed yet: room for either.
    const EventScratch events = event_scratch(p.w);
    const int64_t strips = strip_bytes(groups, threads) + (kHasTables ? nibble_bytes(groups, p.w.cols) : 0);
    const bool may_be_events = p.w.bm % kLanes == 0 && !p.y.panels;
    const int64_t lanes = may_be_events ? events.columns + threads * (events.bits + events.row) : 0;
    return strips > lanes ? strips : lanes;
  }
  const int64_t own = threads * multiply_bytes(by_rows(p.w));
  return own + (!p.words && p.x.panels ? 0 : min(groups, threads) * p.w.cols * kWord * 4);
}

void linear_forward(const LinearForward& p) {
  const int threads = useful_threads(p.w, p.lanes, p.threads);
  if (binary(p.words, p.planes, p.scale)) {
    const SpikeKernel kernel = choose_kernel(p);
    if (kernel == SpikeKernel::events)
      multiply_events(p, threads);
    else
      multiply_spikes(p, threads, kernel);
    return;
  }
  const Source source{p.x, p.words, p.planes, p.scale, p.w.cols, p.lanes};
  const int64_t slots = min(p.lanes.groups(), threads);
  const Side s = by_rows(p.w);
  char* const own = static_cast<char*>(p.scratch);
  float* const panels = reinterpret_cast<float*>(own + threads * multiply_bytes(s));
  multiply(s, source, p.bias, p.y, false, panels, slots, own, threads);
}

int64_t linear_backward_scratch(const LinearBackward& p) { return backward_scratch(p).total; }

void linear_backward(const LinearBackward& p) {
  const int threads = useful_threads(p.w, p.lanes, p.threads);
  const BackwardScratch sizes = backward_scratch(p);
  char* at = static_cast<char*>(p.scratch);
  const auto take = [&at](int64_t bytes) {
    char* here = at;
    at += bytes;
    return here;
  };
  float* const grad_panels = reinterpret_cast<float*>(take(sizes.grad_panels));
  float* const x_panels = reinterpret_cast<float*>(take(sizes.x_panels));
  auto* const words = reinterpret_cast<uint64_t*>(take(sizes.words));
  float* const strips = reinterpret_cast<float*>(take(sizes.strips));
  char* const own = take(sizes.own);
  const int64_t groups = p.lanes.groups();

  const Source grad{p.grad, nullptr, 0, 1.f, p.w.rows, p.lanes};
  if (p.grad_x.data)  // leaves the gradient's panels behind
    multiply(by_cols(p.w), grad, nullptr, p.grad_x, true, grad_panels, groups, own, threads);
  else if (!grad.in_place())
    parallel_for(0, groups, threads, [&](int64_t g) { grad.make(g, grad_panels + g * p.w.rows * kWord); });
  if (!p.grad_values && !p.grad_bias) return;

  const float* const y = grad.in_place() ? grad.panel(0) : grad_panels;
  GradSource x{nullptr, nullptr, groups, p.w.cols};
  const Source source{p.x, p.words, p.planes, p.scale, p.w.cols, p.lanes};
  if (sizes.words) {
    parallel_for(0, ceil_div(p.w.cols, 4), threads,
                 [&](int64_t f) { to_channel_major(p.words, p.w.cols, groups, f, words); });
    x.words = words;
  } else if (p.grad_values) {
    if (!source.in_place())
      parallel_for(0, groups, threads, [&](int64_t g) { source.make(g, x_panels + g * p.w.cols * kWord); });
    x.panels = source.in_place() ? source.panel(0) : x_panels;
  }
  weight_gradient(p, x, y, x.words || !p.grad_values ? kGradGroups : kGradGroupsFloat, strips, threads);
}

}  // namespace esl::ESL_ISA
