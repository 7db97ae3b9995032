// Op transpose_index: a counting sort by column. Each thread counts and then places a share of the rows; the shares'
// places within a column follow the rows' order, so the result does not depend on their number.
//
// Floor: 8 bytes read and 8 written per block, the writes to as many streams as there are columns. torch's stable sort
// of the columns moves 12 bytes per block and pass.
#include "esl/transpose_index.h"

#include "esl/parallel.h"

namespace esl::ESL_ISA {
namespace {

constexpr int64_t kBlocksPerThread = 1 << 15;

int shares(const TransposeIndex& p) {
  const int64_t useful = 1 + p.crow[p.row_blocks] / kBlocksPerThread;
  return static_cast<int>(useful < p.threads ? useful : p.threads);
}

// First row of a share: shares hold about equally many blocks.
int64_t first_row(const TransposeIndex& p, int share, int of) {
  const int64_t wanted = p.crow[p.row_blocks] * int64_t{share} / of;
  int64_t low = 0, high = p.row_blocks;
  while (low < high) {
    const int64_t mid = (low + high) / 2;
    if (p.crow[mid] < wanted)
      low = mid + 1;
    else
      high = mid;
  }
  return share == of ? p.row_blocks : low;
}

}  // namespace

int64_t transpose_index_scratch(const TransposeIndex& p) {
  return shares(p) * p.col_blocks * static_cast<int64_t>(sizeof(int32_t));
}

void transpose_index(const TransposeIndex& p) {
  const int n = shares(p);
  auto* const next = static_cast<int32_t*>(p.scratch);  // [n, col_blocks]: where a share's next block of a column goes
  parallel_for(0, n, n, [&](int64_t share) {
    int32_t* const count = next + share * p.col_blocks;
    for (int64_t c = 0; c < p.col_blocks; ++c) count[c] = 0;
    const int64_t end = p.crow[first_row(p, static_cast<int>(share) + 1, n)];
    for (int64_t q = p.crow[first_row(p, static_cast<int>(share), n)]; q < end; ++q) ++count[p.col[q]];
  });
  int32_t place = 0;
  for (int64_t c = 0; c < p.col_blocks; ++c) {
    p.ccol[c] = place;
    for (int share = 0; share < n; ++share) {
      int32_t& here = next[share * p.col_blocks + c];
      const int32_t count = here;
      here = place;
      place += count;
    }
  }
  p.ccol[p.col_blocks] = place;
  parallel_for(0, n, n, [&](int64_t share) {
    int32_t* const to = next + share * p.col_blocks;
    const int64_t end = first_row(p, static_cast<int>(share) + 1, n);
    for (int64_t r = first_row(p, static_cast<int>(share), n); r < end; ++r)
      for (int64_t q = p.crow[r]; q < p.crow[r + 1]; ++q) {
        const int32_t at = to[p.col[q]]++;
        p.row_t[at] = static_cast<int32_t>(r);
        p.offset_t[at] = static_cast<int32_t>(q);
      }
  });
}

}  // namespace esl::ESL_ISA
