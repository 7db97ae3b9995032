#include "esl/pack.h"
#include "random.h"
#include "testing.h"

using namespace esl;

// Where row element (c, pixel) of a lane stands: index into words or panels [groups, pixels, C], -1 for a padding lane.
struct Element {
  int64_t row, word;

  Element(const Lanes& lanes, int64_t C, int64_t P, int64_t lane, int64_t c, int64_t pixel)
      : row(lane < lanes.count() ? lanes.row(lane) : -1), word((lane / 64 * P + pixel) * C + c) {
    if (row >= 0) row = (row * C + c) * P + pixel;
  }
};

template <class F>
static void for_elements(const Lanes& lanes, int64_t C, int64_t P, F f) {
  for (int64_t lane = 0; lane < lanes.groups() * 64; ++lane)
    for (int64_t c = 0; c < C; ++c)
      for (int64_t pixel = 0; pixel < P; ++pixel) f(lane, Element(lanes, C, P, lane, c, pixel));
}

static void round_trip(int64_t T, int64_t B, int64_t C, int64_t P, int planes, float scale) {
  Random random{static_cast<uint64_t>(T * 1000 + B * 100 + C)};
  const Lanes lanes{T, B};
  std::vector<float> rows(static_cast<size_t>(T * B * C * P));
  for (float& x : rows) x = scale * static_cast<float>(random.next() % (1u << planes));
  std::vector<uint64_t> words(static_cast<size_t>(planes * lanes.groups() * C * P), ~0ull);
  ESL_EXPECT(ESL_DISPATCH(pack, (PackParams{lanes, C, P, planes, scale, rows.data(), Dtype::f32, words.data(), 2})));
  for (int p = 0; p < planes; ++p)
    for_elements(lanes, C, P, [&](int64_t lane, Element e) {
      const int level = e.row < 0 ? 0 : static_cast<int>(rows[static_cast<size_t>(e.row)] / scale);
      const uint64_t word = words[static_cast<size_t>(p * lanes.groups() * P * C + e.word)];
      ESL_EXPECT((word >> (lane % 64) & 1) == static_cast<uint64_t>(level >> p & 1));
    });
  std::vector<float> back = poison(T * B * C * P);
  ESL_DISPATCH(unpack, (UnpackParams{lanes, C, P, planes, scale, words.data(), back.data(), Dtype::f32, 2}));
  ESL_EXPECT(back == rows);
  if (rows.empty()) return;
  for (const float broken : {scale * 0.5f, -scale, scale * static_cast<float>(1 << planes), poison(1)[0]}) {
    std::vector<float> bad = rows;
    bad[random.next() % bad.size()] = broken;
    ESL_EXPECT(!ESL_DISPATCH(pack, (PackParams{lanes, C, P, planes, scale, bad.data(), Dtype::f32, words.data(), 2})));
  }
}

static void panels(int64_t T, int64_t B, int64_t C, int64_t P) {
  Random random{7};
  const Lanes lanes{T, B};
  std::vector<float> rows = random.reals(T * B * C * P), back = poison(T * B * C * P);
  std::vector<float> panel = poison(lanes.groups() * C * P * 64);
  ESL_DISPATCH(to_panels, (PanelParams{lanes, C, P, rows.data(), Dtype::f32, panel.data(), 2}));
  for_elements(lanes, C, P, [&](int64_t lane, Element e) {
    const float expected = e.row < 0 ? 0.f : rows[static_cast<size_t>(e.row)];
    ESL_EXPECT(panel[static_cast<size_t>(e.word * 64 + lane % 64)] == expected);
  });
  ESL_DISPATCH(from_panels, (PanelParams{lanes, C, P, back.data(), Dtype::f32, panel.data(), 2}));
  ESL_EXPECT(back == rows);
}

static void check(int64_t B, int64_t C, int64_t P) {
  round_trip(3, B, C, P, 1, 1.f);
  round_trip(1, B, C, P, 2, 1.f);
  round_trip(2, B, C, P, 3, 0.25f);
  round_trip(1, B, C, P, 4, 2.f);
  panels(3, B, C, P);
}

void run() {
  for (const int64_t C : {1, 15, 64, 65, 1100})
    for (const int64_t B : {0, 1, 8, 21, 70}) check(B, C, 1);
  for (const int64_t C : {1, 3, 17, 64})
    for (const int64_t B : {1, 5, 12, 40})
      for (const int64_t P : {2, 16, 35}) check(B, C, P);
}
