// Op select: positions of the smallest or largest scores; equal ones in the order of a seeded hash of their ids.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/stream.h"

namespace esl {

struct Select {
  int64_t n, count;  // count <= n
  const float* score;
  const int64_t* ids;
  uint64_t seed;
  bool largest;
  int64_t* chosen;  // [count], becomes ascending positions
  void* scratch;    // select_scratch() bytes, 64-byte aligned
  int threads;
};

ESL_DECLARE_CPU(int64_t select_scratch(const Select& p))
// The number of NaN among the scores; only where there is none, `chosen` is written.
ESL_DECLARE_CPU(int64_t select(const Select& p))

struct NotBelow {
  int64_t n;
  const float* score;
  float bound;
  int64_t* found;   // ascending positions; null: only counted
  int64_t* counts;  // [ceil(n / kNotBelowPart)] for each part of the scores, written when found is null, read otherwise
  int threads;
};
constexpr int64_t kNotBelowPart = 1 << 14;

// Positions of the scores that are not below the bound, NaN among them: first their number, then themselves.
ESL_DECLARE_CPU(int64_t not_below(const NotBelow& p))

// On CUDA the number of NaN becomes *nan; where there is any, `chosen` holds nothing of use.
int64_t cuda_select_scratch(int64_t n);  // bytes
void launch_select(const Select& p, int64_t* nan, Stream stream);

}  // namespace esl
