// How a kernel is written, launched, and run where there is no GPU.
//
// A kernel is a Body: a struct of plain parameters with
//   static constexpr int kThreads, kPhases;
//   struct Shared;  // memory of a block of threads
//   template <int phase> ESL_INLINE void run(int block, int thread, Shared& shared) const;
// All threads of a block finish a phase before one of them begins the next; nothing stays in registers between phases.
// So a plain C++ compiler can build the same source with loops in place of the GPU ("emulated"): what the tests run.
#pragma once

#include <climits>
#include <cstdint>
#include <cstring>
#include <string>

#include "esl/check.h"
#include "esl/lanes.h"
#include "esl/stream.h"

namespace esl::cuda {

struct Empty {};

ESL_INLINE int min(int a, int b) { return a < b ? a : b; }
ESL_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
ESL_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
ESL_INLINE void atomic_add(T* place, T value) {
#ifdef __CUDA_ARCH__
  atomicAdd(place, value);
#else
  *place += value;
#endif
}

#ifdef __CUDACC__

template <int phase, class Body>
__device__ __forceinline__ void run_phases(const Body& body, typename Body::Shared& shared) {
  body.template run<phase>(static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x), shared);
  if constexpr (phase + 1 < Body::kPhases) {
    __syncthreads();
    run_phases<phase + 1>(body, shared);
  }
}

// One block of threads on a processor is enough: left to itself ptxas spills to make room for one more.
template <class Body>
__global__ void __launch_bounds__(Body::kThreads, 1) kernel(const Body body) {
  __shared__ typename Body::Shared shared;
  run_phases<0>(body, shared);
}

// std::runtime_error arrives in Python as RuntimeError.
inline void check_error(const char* op, cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(op) + ": CUDA error " + cudaGetErrorName(error) + ": " +
                             cudaGetErrorString(error));
}

#else

// Every other block runs its threads backwards: a result that depends on their order shows.
template <int phase, class Body>
void run_phases(const Body& body, int block, typename Body::Shared& shared) {
  for (int i = 0; i < Body::kThreads; ++i)
    body.template run<phase>(block, block % 2 ? Body::kThreads - 1 - i : i, shared);
  if constexpr (phase + 1 < Body::kPhases) run_phases<phase + 1>(body, block, shared);
}

#endif

// `op` names the kernel in errors. Does not wait for it.
template <class Body>
void launch(const char* op, const Body& body, int64_t blocks, Stream stream) {
  check(blocks <= INT_MAX, std::string(op) + ": expected at most 2^31 - 1 blocks of threads, got " +
                               std::to_string(blocks) + "; split the batch");
  if (blocks == 0) return;
#ifdef __CUDACC__
  kernel<Body><<<static_cast<unsigned>(blocks), Body::kThreads, 0, stream>>>(body);
  check_error(op, cudaGetLastError());
#else
  (void)stream;
  for (int block = 0; block < blocks; ++block) {
    typename Body::Shared shared;
    std::memset(static_cast<void*>(&shared), 0xA5, sizeof(shared));
    run_phases<0>(body, block, shared);
  }
#endif
}

// Kernels count lanes, pixels and elements of a sample in 32 bits (and take addresses in 64). What is left below 2^31
// is for threads that reach beyond the last one.
inline int int32(const char* op, const char* what, int64_t n) {
  constexpr int64_t kMost = INT_MAX - (1 << 16);
  check(n >= 0 && n <= kMost,
        std::string(op) + ": expected at most " + std::to_string(kMost) + " " + what + ", got " + std::to_string(n));
  return static_cast<int>(n);
}

// Lanes as kernels count them.
struct LaneCount {
  int B, padded, count, groups;

  LaneCount(const char* op, const Lanes& lanes)
      : B(static_cast<int>(lanes.B)),
        padded(static_cast<int>(lanes.padded())),
        count(int32(op, "lanes", lanes.count())),
        groups(static_cast<int>(lanes.groups())) {}
  // In a kernel, of numbers that the launch has checked.
  ESL_INLINE LaneCount(int B, int count)
      : B(B), padded((B + 7) / 8 * 8), count(count), groups(static_cast<int>(ceil_div(count, 64))) {}
  // Row of a lane, -1 for padding.
  ESL_INLINE int row(int lane) const {
    if (lane >= count) return -1;
    const int t = lane / padded, b = lane - t * padded;
    return b < B ? t * B + b : -1;
  }
};

// The lanes of a group one after the other, without a division for each.
struct LaneWalk {
  int b, left, B, padded;  // sample of the next lane; lanes that are left
  int64_t row;             // of the next lane that is no padding

  ESL_INLINE LaneWalk(const LaneCount& lanes, int group) : B(lanes.B), padded(lanes.padded) {
    const int lane = group * 64, t = lane / padded;
    b = lane - t * padded;
    left = lanes.count - lane;
    row = static_cast<int64_t>(t) * B + min(b, B);
  }
  // Whether the next lane is no padding: that of row `row - 1` then.
  ESL_INLINE bool next() {
    const bool valid = b < B && left > 0;
    row += valid;
    --left;
    if (++b == padded) b = 0;
    return valid;
  }
};

}  // namespace esl::cuda
