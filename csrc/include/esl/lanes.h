// Lanes: the (time step, sample) pairs of an activation, 64 to a word or panel.
// lane = t * padded + b, with the batch padded to a multiple of 8; a row of a [T * B, C] tensor is t * B + b.
#pragma once

#include <cstdint>

// Shared by all instruction sets, so it must leave no function behind that the linker could merge (see parallel.h).
#ifdef __CUDACC__
#define ESL_INLINE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define ESL_INLINE __forceinline
#else
#define ESL_INLINE inline __attribute__((always_inline))
#endif

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
  // The lanes of a group that hold a sample, one bit each; a byte lies within one step.
  ESL_INLINE uint64_t valid(int64_t group) const {
    uint64_t bits = 0;
    for (int64_t l = 0; l < 64 && group * 64 + l < count(); l += 8) {
      const int64_t samples = B - (group * 64 + l) % padded();
      bits |= (samples >= 8 ? uint64_t{0xFF} : (uint64_t{1} << samples) - 1) << l;
    }
    return bits;
  }
};

enum class Dtype { f32, bf16, f16 };  // f16: on CUDA only

// Panels [groups, height, width, channels, 64] and words [groups, height, width, channels]. A unit is one pixel's
// channel. Padding lanes of currents hold anything, those of gradients zero.
struct PanelShape {
  Lanes lanes;
  int64_t height, width, channels;

  ESL_INLINE int64_t pixels() const { return height * width; }
  ESL_INLINE int64_t units() const { return height * width * channels; }
};

// A float activation: rows [T * B, channels], or panels [groups, channels, 64] (float32 only).
struct Activation {
  void* data;
  Dtype dtype;
  bool panels;
};

}  // namespace esl
