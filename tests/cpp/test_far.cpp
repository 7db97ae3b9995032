// Operands in which places are more than 2^31 elements apart: of address space there is plenty, and only the few pages
// that are written or read take memory.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "esl/conv2d.h"
#include "random.h"
#include "testing.h"
#include "weight.h"

using namespace esl;

namespace {

constexpr int64_t kFar = int64_t{1} << 32;

// Zeros that are not there until they are written.
template <class T>
struct Vast {
  T* data = nullptr;
  size_t bytes;

  explicit Vast(int64_t n) : bytes(static_cast<size_t>(n) * sizeof(T)) {
#if defined(__linux__)
    void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at != MAP_FAILED) data = static_cast<T*>(at);
#endif
    if (!data) {
      std::fprintf(stderr, "%zu bytes of address space cannot be had\n", bytes);
      std::exit(77);
    }
  }
  Vast(const Vast&) = delete;
  ~Vast() {
#if defined(__linux__)
    munmap(data, bytes);
#endif
  }
  T& operator[](int64_t i) { return data[i]; }
};

// A weight of one row of blocks whose last block is the only one that counts; those before it belong to no row.
struct LastBlock {
  static constexpr int64_t kSide = 128, kBlocks = kFar / (kSide * kSide) + 1;
  Vast<float> values{kBlocks * kSide * kSide}, grad_values{kBlocks * kSide * kSide};
  int32_t crow[2] = {static_cast<int32_t>(kBlocks - 1), static_cast<int32_t>(kBlocks)};
  std::vector<int32_t> col = std::vector<int32_t>(static_cast<size_t>(kBlocks));
  int32_t ccol[2] = {0, 1}, row_t[1] = {0}, offset_t[1] = {static_cast<int32_t>(kBlocks - 1)};

  explicit LastBlock(Random& random) {
    for (int64_t i = 0; i < kSide * kSide; ++i) last(values, i) = random.real();
  }
  static float& last(Vast<float>& v, int64_t i) { return v[(kBlocks - 1) * kSide * kSide + i]; }
  BlockSparse view() const {
    return {kSide, kSide, kSide, kSide, crow, col.data(), ccol, row_t, offset_t, values.data};
  }
};

// A linear map, or a convolution of one pixel, whose block stands far behind the first one.
void far_values(bool convolution) {
  Random random{7};
  LastBlock w(random);
  constexpr int64_t kSide = LastBlock::kSide;
  const Lanes lanes{1, 64};
  const ConvShape s{1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1};
  const std::vector<float> x = random.reals(kSide * 64), grad = random.reals(kSide * 64);  // panels
  std::vector<float> y = poison(kSide * 64), grad_x = poison(kSide * 64);
  const auto panels = [](const std::vector<float>& v) {
    return Activation{const_cast<float*>(v.data()), Dtype::f32, true};
  };
  if (convolution) {
    Conv2dForward f{w.view(), s, lanes, nullptr, nullptr, 0, 1.f, x.data(), y.data(), nullptr, SpikeKernel::automatic,
                    nullptr,  1};
    Scratch scratch(ESL_DISPATCH(conv2d_forward_scratch, f));
    f.scratch = scratch.data;
    ESL_DISPATCH(conv2d_forward, f);
    Conv2dBackward b{w.view(), s,       lanes,    grad.data(),   nullptr,
                     0,        1.f,     x.data(), grad_x.data(), w.grad_values.data,
                     nullptr,  nullptr, 1};
    Scratch more(ESL_DISPATCH(conv2d_backward_scratch, b));
    b.scratch = more.data;
    ESL_DISPATCH(conv2d_backward, b);
  } else {
    LinearForward f{w.view(), lanes, nullptr, nullptr, 0, 1.f, panels(x), panels(y), SpikeKernel::automatic,
                    nullptr,  1};
    Scratch scratch(ESL_DISPATCH(linear_forward_scratch, f));
    f.scratch = scratch.data;
    ESL_DISPATCH(linear_forward, f);
    LinearBackward b{w.view(),  lanes,          panels(grad),       nullptr, 0,       1.f,
                     panels(x), panels(grad_x), w.grad_values.data, nullptr, nullptr, 1};
    Scratch more(ESL_DISPATCH(linear_backward_scratch, b));
    b.scratch = more.data;
    ESL_DISPATCH(linear_backward, b);
  }
  const auto at = [](const std::vector<float>& v, int64_t i, int64_t lane) {
    return v[static_cast<size_t>(i * 64 + lane)];
  };
  for (int64_t i = 0; i < kSide; ++i) {
    for (int64_t lane = 0; lane < 64; ++lane) {
      double forward = 0, back = 0;
      for (int64_t k = 0; k < kSide; ++k) {
        forward += LastBlock::last(w.values, i * kSide + k) * at(x, k, lane);
        back += LastBlock::last(w.values, k * kSide + i) * at(grad, k, lane);
      }
      ESL_EXPECT(close(at(y, i, lane), forward, 1e-4));
      ESL_EXPECT(close(at(grad_x, i, lane), back, 1e-4));
    }
    for (int64_t k = 0; k < kSide; ++k) {
      double sum = 0;
      for (int64_t lane = 0; lane < 64; ++lane) sum += at(grad, i, lane) * at(x, k, lane);
      ESL_EXPECT(close(LastBlock::last(w.grad_values, i * kSide + k), sum, 1e-4));
    }
  }
}

// Two output pixels, one above the other, of a map without a border, which is read where it is: its rows and its groups
// of lanes are 2^30 words, or 2^32 floats, and more apart. Binary spikes are copied where there are several taps.
void far_pixels(bool spikes) {
  Random random{11};
  const int64_t W = spikes ? int64_t{1} << 29 : int64_t{1} << 25, C = 2, H = 4, rows = 4, taps = spikes ? 1 : 2;
  const ConvShape s{1, H, W, 2, 1, taps, 1, 2, 1, 0, 0, 1, 1};
  const Lanes lanes{1, 72};  // two groups
  const Weight w(random, rows, taps * C, 4, 1, 1.1, 1, taps);
  Vast<uint64_t> words(spikes ? 2 * H * W * C : 1);
  Vast<float> panels(spikes ? 1 : 2 * H * W * C * 64);
  std::vector<float> x(static_cast<size_t>(lanes.count() * H * C));
  const auto value = [&](int64_t lane, int64_t h, int64_t c) -> float& {
    return x[static_cast<size_t>((lane * H + h) * C + c)];
  };
  for (int64_t lane = 0; lane < lanes.count(); ++lane)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t c = 0; c < C; ++c) {
        const int64_t unit = (lane / 64 * H + h) * W * C + c;
        value(lane, h, c) = spikes ? static_cast<float>(random.uniform() < 0.5) : random.real();
        if (spikes)
          words[unit] |= uint64_t{value(lane, h, c) > 0} << lane % 64;
        else
          panels[unit * 64 + lane % 64] = value(lane, h, c);
      }
  const auto place = [](int64_t lane, int64_t y, int64_t r) {
    return static_cast<size_t>(((lane / 64 * 2 + y) * rows + r) * 64 + lane % 64);
  };
  std::vector<float> y = poison(2 * 2 * rows * 64), grad(y.size());
  for (int64_t lane = 0; lane < lanes.count(); ++lane)
    for (int64_t i = 0; i < 2 * rows; ++i) grad[place(lane, i / rows, i % rows)] = random.real();
  std::vector<float> grad_values = poison(static_cast<int64_t>(w.values.size()));

  const uint64_t* const packed = spikes ? words.data : nullptr;
  const float* const floats = spikes ? nullptr : panels.data;
  Conv2dForward f{w.view(), s, lanes, nullptr, packed, spikes, 1.f, floats, y.data(), nullptr, SpikeKernel::masked,
                  nullptr,  1};
  Scratch scratch(ESL_DISPATCH(conv2d_forward_scratch, f));
  f.scratch = scratch.data;
  ESL_DISPATCH(conv2d_forward, f);
  Conv2dBackward b{w.view(), s,       lanes, grad.data(), packed, spikes, 1.f, floats, nullptr, grad_values.data(),
                   nullptr,  nullptr, 1};
  Scratch more(ESL_DISPATCH(conv2d_backward_scratch, b));
  b.scratch = more.data;
  ESL_DISPATCH(conv2d_backward, b);

  std::vector<double> sums(w.dense.size());
  for (int64_t lane = 0; lane < lanes.count(); ++lane)
    for (int64_t oy = 0; oy < 2; ++oy)
      for (int64_t r = 0; r < rows; ++r) {
        double sum = 0;
        for (int64_t k = 0; k < taps * C; ++k) {
          const size_t weight = static_cast<size_t>(r * taps * C + k);
          const double source = value(lane, 2 * oy + k / C, k % C);
          sum += w.dense[weight] * source;
          sums[weight] += source * grad[place(lane, oy, r)];
        }
        ESL_EXPECT(close(y[place(lane, oy, r)], sum, 1e-5));
      }
  w.each([&](size_t at, int64_t r, int64_t c) {
    ESL_EXPECT(close(grad_values[at], sums[static_cast<size_t>(r * taps * C + c)], 1e-4));
  });
}

}  // namespace

void run() {
  far_values(false);
  far_values(true);
  far_pixels(false);
  far_pixels(true);
}
