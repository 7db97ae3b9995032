// Op sample. Floor: 8 bytes written a number, and a dozen rounds of some ten instructions, which vectors share: the
// pairs of a chunk go through a round together, and the few numbers that are too large walk on alone.
#include "esl/sample.h"

#include "esl/parallel.h"

namespace esl::ESL_ISA {
namespace {

constexpr int kChunk = 64;

void draw(const Sample& p, int64_t first, int n) {
  const auto l = static_cast<uint32_t>(p.left), r = static_cast<uint32_t>(p.right);
  uint32_t a[kChunk] = {}, b[kChunk] = {};
  for (int j = 0; j < n; ++j) {
    a[j] = static_cast<uint32_t>((first + j) / p.right);
    b[j] = static_cast<uint32_t>((first + j) % p.right);
  }
  for (int k = 0; k < kSampleRounds; k += 2) {
    for (int j = 0; j < kChunk; ++j) a[j] = Sample::moved(a[j], l, b[j], p.keys[k]);
    for (int j = 0; j < kChunk; ++j) b[j] = Sample::moved(b[j], r, a[j], p.keys[k + 1]);
  }
  for (int j = 0; j < n; ++j) {
    const int64_t x = int64_t{a[j]} * p.right + b[j];
    p.out[first + j] = x < p.total ? x : p.at(x);
  }
}

}  // namespace

void sample(const Sample& p) {
  const int threads = useful_threads(p.count, 1 << 14, p.threads);
  parallel_for(0, ceil_div(p.count, kChunk), threads, [&](int64_t chunk) {
    draw(p, chunk * kChunk, static_cast<int>(min(kChunk, p.count - chunk * kChunk)));
  });
}

}  // namespace esl::ESL_ISA
