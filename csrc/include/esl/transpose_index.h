// Op transpose_index: the blocks of a row-major index in column order.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/stream.h"

namespace esl {

struct TransposeIndex {
  int64_t row_blocks, col_blocks;
  const int32_t *crow, *col;         // [row_blocks + 1], [nnzb]
  int32_t *ccol, *row_t, *offset_t;  // [col_blocks + 1], [nnzb], [nnzb]; rows ascend within a column
  void* scratch;                     // transpose_index_scratch() bytes
  int threads;
};

ESL_DECLARE_CPU(int64_t transpose_index_scratch(const TransposeIndex& p))
ESL_DECLARE_CPU(void transpose_index(const TransposeIndex& p))

// On CUDA, where crow[row_blocks] = nnzb is not read by the host.
int64_t cuda_transpose_index_scratch(const TransposeIndex& p, int64_t nnzb);
void launch_transpose_index(const TransposeIndex& p, int64_t nnzb, Stream stream);

}  // namespace esl
