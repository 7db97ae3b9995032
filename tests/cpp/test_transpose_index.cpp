#include <algorithm>
#include <vector>

#include "esl/transpose_index.h"
#include "random.h"
#include "testing.h"

using namespace esl;

namespace {

// Against a stable sort by column.
void check(Random& random, int64_t rows, int64_t cols, double density, int threads) {
  std::vector<int32_t> crow{0}, col, row;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c)
      if (random.uniform() < density) col.push_back(static_cast<int32_t>(c)), row.push_back(static_cast<int32_t>(r));
    crow.push_back(static_cast<int32_t>(col.size()));
  }
  std::vector<int32_t> order(col.size()), ccol(static_cast<size_t>(cols) + 1, -1), row_t(col.size(), -1),
      offset_t(col.size(), -1);
  TransposeIndex p{rows, cols, crow.data(), col.data(), ccol.data(), row_t.data(), offset_t.data(), nullptr, threads};
  std::vector<char> scratch(static_cast<size_t>(ESL_DISPATCH(transpose_index_scratch, p)), 'x');
  p.scratch = scratch.data();
  ESL_DISPATCH(transpose_index, p);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return col[static_cast<size_t>(a)] < col[static_cast<size_t>(b)]; });
  ESL_EXPECT(offset_t == order);
  for (size_t i = 0; i < order.size(); ++i) ESL_EXPECT(row_t[i] == row[static_cast<size_t>(order[i])]);
  for (int64_t c = 0; c <= cols; ++c) {
    const auto before = std::count_if(col.begin(), col.end(), [&](int32_t x) { return x < c; });
    ESL_EXPECT(ccol[static_cast<size_t>(c)] == before);
  }
}

}  // namespace

void run() {
  Random random{3};
  for (const int threads : {1, 3})
    for (const double density : {0.0, 0.1, 1.0})
      for (const int64_t rows : {1, 7, 40})
        for (const int64_t cols : {1, 9, 33}) check(random, rows, cols, density, threads);
  check(random, 900, 300, 0.5, 4);  // enough blocks for every thread to have a share
}
