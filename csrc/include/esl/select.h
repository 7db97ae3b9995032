// Op select: positions of the smallest or largest scores; equal ones in the order of a seeded hash of their ids.
#pragma once

#include <cstdint>

#include "esl/isa.h"

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

}  // namespace esl
