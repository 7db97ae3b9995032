// Op block_score: mean magnitude of the gradient in each block of a weight, from spike words and output gradients.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/lanes.h"
#include "esl/stream.h"

namespace esl {

// One call of the layer: binary spikes times `scale` came in, `grad` came back.
struct ScoreCall {
  Lanes lanes;
  float scale;
  const uint64_t* words;  // [groups, cols]
  const void* grad;       // [T * B, rows]
  Dtype dtype;
};

struct BlockScore {
  int64_t rows, cols, bm, bn;
  const ScoreCall* calls;
  int64_t call_count;
  int64_t first, count;  // block rows
  float* scores;         // [count, col_blocks]
  void* scratch;         // block_score_scratch() bytes, 64-byte aligned
  int threads;
};

ESL_DECLARE_CPU(int64_t block_score_scratch(const BlockScore& p))
ESL_DECLARE_CPU(void block_score(const BlockScore& p))
ESL_DECLARE_CPU(int64_t count_spikes(const uint64_t* words, int64_t count))

// On CUDA: a call as it stands in the GPU's memory. x is words [planes, groups, cols], or with planes = 0 float32 rows.
struct ScoreCallCuda {
  int64_t x, grad;  // addresses
  int64_t B, lanes, planes;
};

struct BlockScoreCuda {
  int64_t rows, cols, bm, bn;
  const ScoreCallCuda* calls;
  const float* scale;  // of each call
  int64_t call_count;
  int64_t most_lanes;  // of a call
  Dtype dtype;         // of all gradients
  int64_t first, count;
  float* scores;
};

void launch_block_score(const BlockScoreCuda& p, Stream stream);

}  // namespace esl
