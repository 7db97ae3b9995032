// A random block-sparse weight, and scratch memory that ends where it was said to end.
#pragma once

#include <cstdlib>

#include "esl/linear.h"
#include "random.h"

namespace esl {

// The blocks, their index both ways, and the same weight dense. Overhang entries hold NaN. Rows fall into groups and
// columns into taps; no block has part in two of them.
struct Weight {
  int64_t rows, cols, bm, bn, group_rows, tap_cols, group_blocks, tap_blocks, row_blocks, col_blocks;
  std::vector<int32_t> crow, col, ccol, row_t, offset_t;
  std::vector<float> values;
  std::vector<double> dense;

  Weight(Random& random, int64_t rows, int64_t cols, int64_t bm, int64_t bn, double density, int64_t groups = 1,
         int64_t taps = 1)
      : rows(rows),
        cols(cols),
        bm(bm),
        bn(bn),
        group_rows(rows / groups),
        tap_cols(cols / taps),
        group_blocks((group_rows + bm - 1) / bm),
        tap_blocks((tap_cols + bn - 1) / bn),
        row_blocks(groups * group_blocks),
        col_blocks(taps * tap_blocks),
        crow{0},
        ccol{0},
        dense(static_cast<size_t>(rows * cols)) {
    std::vector<int32_t> at(static_cast<size_t>(row_blocks * col_blocks), -1);
    for (int64_t rb = 0; rb < row_blocks; ++rb) {
      for (int64_t cb = 0; cb < col_blocks; ++cb) {
        if (random.uniform() >= density) continue;
        at[static_cast<size_t>(rb * col_blocks + cb)] = static_cast<int32_t>(col.size());
        col.push_back(static_cast<int32_t>(cb));
        for (int64_t i = 0; i < bm * bn; ++i) {
          const int64_t r = row(rb, i / bn), c = column(cb, i % bn);
          const bool valid = r >= 0 && c >= 0;
          values.push_back(valid ? random.real() : poison(1)[0]);
          if (valid) dense[static_cast<size_t>(r * cols + c)] = values.back();
        }
      }
      crow.push_back(static_cast<int32_t>(col.size()));
    }
    for (int64_t cb = 0; cb < col_blocks; ++cb) {
      for (int64_t rb = 0; rb < row_blocks; ++rb)
        if (const int32_t p = at[static_cast<size_t>(rb * col_blocks + cb)]; p >= 0) {
          row_t.push_back(static_cast<int32_t>(rb));
          offset_t.push_back(p);
        }
      ccol.push_back(static_cast<int32_t>(row_t.size()));
    }
  }
  // Row i of a row of blocks, column j of a column of blocks; -1 in the overhang.
  int64_t row(int64_t rb, int64_t i) const {
    const int64_t inside = rb % group_blocks * bm + i;
    return inside < group_rows ? rb / group_blocks * group_rows + inside : -1;
  }
  int64_t column(int64_t cb, int64_t j) const {
    const int64_t inside = cb % tap_blocks * bn + j;
    return inside < tap_cols ? cb / tap_blocks * tap_cols + inside : -1;
  }
  BlockSparse view() const {
    return {rows, cols, bm, bn, crow.data(), col.data(), ccol.data(), row_t.data(), offset_t.data(), values.data()};
  }
  // f(place in values, row, column), both -1 in the overhang.
  template <class F>
  void each(F f) const {
    for (int64_t rb = 0; rb < row_blocks; ++rb)
      for (int64_t p = crow[static_cast<size_t>(rb)]; p < crow[static_cast<size_t>(rb) + 1]; ++p)
        for (int64_t i = 0; i < bm * bn; ++i) {
          const int64_t r = row(rb, i / bn), c = column(col[static_cast<size_t>(p)], i % bn);
          const bool valid = r >= 0 && c >= 0;
          f(static_cast<size_t>(p * bm * bn + i), valid ? r : -1, valid ? c : -1);
        }
  }
};

// Exactly as many bytes as asked for, aligned as the arena's are: one step further is the sanitizer's.
struct Scratch {
  void* data = nullptr;
  explicit Scratch(int64_t bytes) {
    if (posix_memalign(&data, 64, static_cast<size_t>(bytes))) std::abort();
    std::memset(data, 0xFF, static_cast<size_t>(bytes));
  }
  Scratch(const Scratch&) = delete;
  ~Scratch() { free(data); }
};

}  // namespace esl
