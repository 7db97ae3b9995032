// Lanes: the (time step, sample) pairs of an activation, 64 to a word or panel.
// lane = t * padded + b, with the batch padded to a multiple of 8; a row of a [T * B, C] tensor is t * B + b.
#pragma once

#include <cstdint>

// Shared by all instruction sets, so it must leave no function behind that the linker could merge (see parallel.h).
#define ESL_INLINE inline __attribute__((always_inline))

namespace esl {

constexpr int kMaxPlanes = 4;  // bits of a small integer

struct Lanes {
  int64_t T, B;

  ESL_INLINE int64_t padded() const { return (B + 7) / 8 * 8; }
  ESL_INLINE int64_t count() const { return T * padded(); }
  ESL_INLINE int64_t groups() const { return (count() + 63) / 64; }
  ESL_INLINE int64_t rows() const { return T * B; }
  // Row of a lane below count(), -1 for padding.
  ESL_INLINE int64_t row(int64_t lane) const {
    const int64_t t = lane / padded(), b = lane % padded();
    return b < B ? t * B + b : -1;
  }
};

enum class Dtype { f32, bf16 };

// A float activation: rows [T * B, channels], or panels [groups, channels, 64] (float32 only).
struct Activation {
  void* data;
  Dtype dtype;
  bool panels;
};

}  // namespace esl
