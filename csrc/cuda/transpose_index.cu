// Op transpose_index: a stable sort of the column of each block, on the bits that columns have; rows then ascend within
// a column by themselves. The only file that takes in CUB: its sort is half a minute of compilation.
#include "esl/transpose_index.h"
#include "launch.h"

#ifdef __CUDACC__
#include <cub/device/device_radix_sort.cuh>
#else
#include <algorithm>
#endif

namespace esl {

namespace cuda {
namespace {

// What the sort takes: its own memory, then columns in their new order, then positions 0, 1, 2 ...
struct Sort {
  TransposeIndex p;
  int n, bits;
  int64_t own;  // bytes

  Sort(const TransposeIndex& p, int64_t nnzb) : p(p), n(int32("transpose_index", "blocks", nnzb)), bits(1), own(0) {
    while (int64_t{1} << bits < p.col_blocks) ++bits;
#ifdef __CUDACC__
    size_t bytes = 0;
    check_error("transpose_index", sort(nullptr, bytes, nullptr));
    own = (static_cast<int64_t>(bytes) + 255) / 256 * 256;
#endif
  }
  int32_t* columns() const { return reinterpret_cast<int32_t*>(static_cast<char*>(p.scratch) + own); }
  int32_t* positions() const { return columns() + n; }
  int64_t bytes() const { return own + int64_t{2} * n * static_cast<int64_t>(sizeof(int32_t)); }

#ifdef __CUDACC__
  cudaError_t sort(void* memory, size_t& bytes, Stream stream) const {
    // Columns are not negative: as unsigned numbers they need no bit flipped.
    const auto keys = [](const int32_t* p) { return reinterpret_cast<const uint32_t*>(p); };
    return cub::DeviceRadixSort::SortPairs(memory, bytes, keys(p.col), reinterpret_cast<uint32_t*>(columns()),
                                           keys(positions()), reinterpret_cast<uint32_t*>(p.offset_t), n, 0, bits,
                                           stream);
  }
#endif
  void run(Stream stream) const {
#ifdef __CUDACC__
    size_t bytes = static_cast<size_t>(own);
    check_error("transpose_index", sort(p.scratch, bytes, stream));
#else
    (void)stream;
    std::copy(positions(), positions() + n, p.offset_t);
    std::stable_sort(p.offset_t, p.offset_t + n, [&](int32_t a, int32_t b) { return p.col[a] < p.col[b]; });
    std::transform(p.offset_t, p.offset_t + n, columns(), [&](int32_t b) { return p.col[b]; });
#endif
  }
};

struct Number {
  static constexpr int kThreads = 256, kPhases = 1;
  using Shared = Empty;
  int32_t* positions;
  int n;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t at = static_cast<int64_t>(block) * kThreads + thread;
    if (at < n) positions[at] = static_cast<int32_t>(at);
  }
};

// How many of the ascending numbers a[0, n) are below x.
ESL_INLINE int count_below(const int32_t* a, int n, int64_t x) {
  int begin = 0, end = n;
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (a[middle] < x)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// ccol from the sorted columns, and the row of each block, which crow knows.
struct Find {
  static constexpr int kThreads = 256, kPhases = 1;
  using Shared = Empty;
  TransposeIndex p;
  const int32_t* columns;
  int n;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t at = static_cast<int64_t>(block) * kThreads + thread;
    if (at <= p.col_blocks) p.ccol[at] = count_below(columns, n, at);
    if (at < n) {
      const int64_t next = static_cast<int64_t>(p.offset_t[at]) + 1;
      p.row_t[at] = count_below(p.crow + 1, static_cast<int>(p.row_blocks), next);
    }
  }
};

}  // namespace
}  // namespace cuda

using namespace cuda;

int64_t cuda_transpose_index_scratch(const TransposeIndex& p, int64_t nnzb) { return Sort(p, nnzb).bytes(); }

void launch_transpose_index(const TransposeIndex& p, int64_t nnzb, Stream stream) {
  const Sort sort(p, nnzb);
  launch("transpose_index", Number{sort.positions(), sort.n}, ceil_div(nnzb, Number::kThreads), stream);
  if (nnzb > 0) sort.run(stream);
  const int64_t most = nnzb > p.col_blocks + 1 ? nnzb : p.col_blocks + 1;
  launch("transpose_index", Find{p, sort.columns(), sort.n}, ceil_div(most, Find::kThreads), stream);
}

}  // namespace esl
