// Op pack. A thread takes one element of a sample and walks through the 64 lanes of a group: neighbours read
// neighbours, each makes its own words, and no two threads need each other. Panels are transposed through shared
// memory.
#include "element.h"
#include "esl/pack.h"
#include "launch.h"

namespace esl {

namespace cuda {
namespace {

constexpr int kThreads = 128;

// Where a block of threads works: group of lanes, and elements of a sample, in (channel, pixel) order.
struct Elements {
  int size, channels, pixels, blocks;  // elements of a sample; blocks of threads of a group

  Elements(const char* op, int64_t channels, int64_t pixels, int per_block)
      : size(int32(op, "elements of a sample", channels * pixels)),
        channels(static_cast<int>(channels)),
        pixels(static_cast<int>(pixels)),
        blocks(static_cast<int>(ceil_div(size, per_block))) {}
  // Place of an element in words and panels, which are in (pixel, channel) order.
  ESL_INLINE int place(int element) const {
    const int c = element / pixels;
    return (element - c * pixels) * channels + c;
  }
};

template <class T, int kPlanes>
struct Pack {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  PackParams p;
  int32_t* broken;
  Elements elements;
  LaneCount lanes;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int g = block / elements.blocks, e = block % elements.blocks * kThreads + thread;
    if (e >= elements.size) return;
    float weight[kPlanes];
    for (int plane = 0; plane < kPlanes; ++plane) weight[plane] = p.scale * static_cast<float>(1 << plane);
    LaneWalk walk(lanes, g);
    const T* x = static_cast<const T*>(p.rows) + walk.row * elements.size + e;
    uint32_t bits[2][kPlanes] = {};
    bool good = true;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll 8
      for (int l = 0; l < 32; ++l) {
        if (!walk.next()) continue;
        float v = widen(*x);
        x += elements.size;
        // What is left after taking the highest plane away, then the next, must be 0; each subtraction is exact.
#pragma unroll
        for (int plane = kPlanes - 1; plane >= 0; --plane) {
          const bool bit = plane < p.planes && v >= weight[plane];
          if (bit) v -= weight[plane];
          bits[half][plane] |= static_cast<uint32_t>(bit) << l;
        }
        good &= v == 0.f;
      }
    }
    const int64_t place = static_cast<int64_t>(g) * elements.size + elements.place(e);
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane)
      if (plane < p.planes)
        p.words[static_cast<int64_t>(plane) * lanes.groups * elements.size + place] =
            bits[0][plane] | static_cast<uint64_t>(bits[1][plane]) << 32;
    if (!good) *broken = 1;
  }
};

template <class T>
struct Unpack {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  UnpackParams p;
  Elements elements;
  LaneCount lanes;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int g = block / elements.blocks, e = block % elements.blocks * kThreads + thread;
    if (e >= elements.size) return;
    const int64_t place = static_cast<int64_t>(g) * elements.size + elements.place(e);
    uint64_t words[kMaxPlanes];
#pragma unroll
    for (int plane = 0; plane < kMaxPlanes; ++plane)
      words[plane] = plane < p.planes ? p.words[static_cast<int64_t>(plane) * lanes.groups * elements.size + place] : 0;
    LaneWalk walk(lanes, g);
    T* x = static_cast<T*>(p.rows) + walk.row * elements.size + e;
#pragma unroll 8
    for (int l = 0; l < 64; ++l) {
      if (!walk.next()) continue;
      int level = 0;
#pragma unroll
      for (int plane = 0; plane < kMaxPlanes; ++plane) level |= static_cast<int>(words[plane] >> l & 1) << plane;
      narrow(p.scale * static_cast<float>(level), *x);
      x += elements.size;
    }
  }
};

// 64 lanes of 32 elements; T is an unsigned integer of the element's size.
template <class T, bool kToPanels>
struct Transpose {
  static constexpr int kThreads = 256, kPhases = 2, kElements = 32;
  struct Shared {
    T tile[64][kElements + 1];
  };
  PanelParams p;
  Elements elements;
  LaneCount lanes;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared& shared) const {
    const int g = block / elements.blocks, first = block % elements.blocks * kElements;
    if ((phase == 0) == kToPanels) {  // the side of the rows
      const int e = thread % kElements;
      T* const rows = static_cast<T*>(p.rows) + first + e;
      for (int l = thread / kElements; l < 64; l += kThreads / kElements) {
        const int64_t row = lanes.row(g * 64 + l);
        const bool inside = row >= 0 && first + e < elements.size;
        if (kToPanels)
          shared.tile[l][e] = inside ? rows[row * elements.size] : T{0};
        else if (inside)
          rows[row * elements.size] = shared.tile[l][e];
      }
    } else {
      const int l = thread % 64;
      for (int e = thread / 64; e < min(kElements, elements.size - first); e += kThreads / 64) {
        const int64_t place = static_cast<int64_t>(g) * elements.size + elements.place(first + e);
        T* const panel = reinterpret_cast<T*>(p.panels) + place * 64 + l;
        if (kToPanels)
          *panel = shared.tile[l][e];
        else
          shared.tile[l][e] = *panel;
      }
    }
  }
};

template <bool kToPanels>
void transpose(const char* op, const PanelParams& p, Stream stream) {
  const Elements elements(op, p.channels, p.pixels, 32);
  const LaneCount lanes(op, p.lanes);
  const int64_t blocks = static_cast<int64_t>(lanes.groups) * elements.blocks;
  if (p.dtype == Dtype::f32)
    launch(op, Transpose<uint32_t, kToPanels>{p, elements, lanes}, blocks, stream);
  else
    launch(op, Transpose<uint16_t, kToPanels>{p, elements, lanes}, blocks, stream);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void launch_pack(const PackParams& p, int32_t* broken, Stream stream) {
  const Elements elements("pack", p.channels, p.pixels, kThreads);
  const LaneCount lanes("pack", p.lanes);
  const int64_t blocks = static_cast<int64_t>(lanes.groups) * elements.blocks;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.planes == 1)
      launch("pack", Pack<T, 1>{p, broken, elements, lanes}, blocks, stream);
    else
      launch("pack", Pack<T, kMaxPlanes>{p, broken, elements, lanes}, blocks, stream);
  });
}

void launch_unpack(const UnpackParams& p, Stream stream) {
  const Elements elements("unpack", p.channels, p.pixels, kThreads);
  const LaneCount lanes("unpack", p.lanes);
  with_element(p.dtype, [&](auto element) {
    launch("unpack", Unpack<decltype(element)>{p, elements, lanes},
           static_cast<int64_t>(lanes.groups) * elements.blocks, stream);
  });
}

void launch_to_panels(const PanelParams& p, Stream stream) { transpose<true>("to_panels", p, stream); }
void launch_from_panels(const PanelParams& p, Stream stream) { transpose<false>("from_panels", p, stream); }

}  // namespace esl
