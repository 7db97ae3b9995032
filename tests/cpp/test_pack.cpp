#include "esl/pack.h"
#include "random.h"
#include "testing.h"

using namespace esl;

static void round_trip(int64_t T, int64_t B, int64_t C, int planes, float scale) {
  Random random{static_cast<uint64_t>(T * 1000 + B * 100 + C)};
  const Lanes lanes{T, B};
  std::vector<float> rows(static_cast<size_t>(T * B * C));
  for (float& x : rows) x = scale * static_cast<float>(random.next() % (1u << planes));
  std::vector<uint64_t> words(static_cast<size_t>(planes * lanes.groups() * C), ~0ull);
  ESL_EXPECT(ESL_DISPATCH(pack, (PackParams{lanes, C, planes, scale, rows.data(), Dtype::f32, words.data(), 2})));
  for (int p = 0; p < planes; ++p)
    for (int64_t lane = 0; lane < lanes.groups() * 64; ++lane)
      for (int64_t c = 0; c < C; ++c) {
        const int64_t row = lane < lanes.count() ? lanes.row(lane) : -1;
        const int level = row < 0 ? 0 : static_cast<int>(rows[static_cast<size_t>(row * C + c)] / scale);
        const uint64_t word = words[static_cast<size_t>((p * lanes.groups() + lane / 64) * C + c)];
        ESL_EXPECT((word >> (lane % 64) & 1) == static_cast<uint64_t>(level >> p & 1));
      }
  std::vector<float> back = poison(T * B * C);
  ESL_DISPATCH(unpack, (UnpackParams{lanes, C, planes, scale, words.data(), back.data(), Dtype::f32, 2}));
  ESL_EXPECT(back == rows);
  if (rows.empty()) return;
  for (const float broken : {scale * 0.5f, -scale, scale * static_cast<float>(1 << planes), poison(1)[0]}) {
    std::vector<float> bad = rows;
    bad[random.next() % bad.size()] = broken;
    ESL_EXPECT(!ESL_DISPATCH(pack, (PackParams{lanes, C, planes, scale, bad.data(), Dtype::f32, words.data(), 2})));
  }
}

static void panels(int64_t T, int64_t B, int64_t C) {
  Random random{7};
  const Lanes lanes{T, B};
  std::vector<float> rows = random.reals(T * B * C), back = poison(T * B * C), panel = poison(lanes.groups() * C * 64);
  ESL_DISPATCH(to_panels, (PanelParams{lanes, C, rows.data(), Dtype::f32, panel.data(), 2}));
  for (int64_t lane = 0; lane < lanes.groups() * 64; ++lane)
    for (int64_t c = 0; c < C; ++c) {
      const int64_t row = lane < lanes.count() ? lanes.row(lane) : -1;
      const float expected = row < 0 ? 0.f : rows[static_cast<size_t>(row * C + c)];
      ESL_EXPECT(panel[static_cast<size_t>((lane / 64 * C + c) * 64 + lane % 64)] == expected);
    }
  ESL_DISPATCH(from_panels, (PanelParams{lanes, C, back.data(), Dtype::f32, panel.data(), 2}));
  ESL_EXPECT(back == rows);
}

void run() {
  for (const int64_t C : {1, 15, 64, 65, 1100})
    for (const int64_t B : {0, 1, 8, 21, 70}) {
      round_trip(3, B, C, 1, 1.f);
      round_trip(2, B, C, 3, 0.25f);
      round_trip(1, B, C, 4, 2.f);
      panels(3, B, C);
    }
}
