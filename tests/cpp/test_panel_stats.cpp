#include "esl/panel_stats.h"
#include "random.h"
#include "testing.h"

using namespace esl;

namespace {

void check(int64_t T, int64_t B, int64_t height, int64_t width, int64_t channels, double centre, int threads) {
  Random random{static_cast<uint64_t>(T * 1000 + B * 100 + channels)};
  const PanelShape s{{T, B}, height, width, channels};
  std::vector<float> current = poison(s.lanes.groups() * s.units() * 64);  // NaN in the padding lanes
  std::vector<double> stats(static_cast<size_t>(2 * channels), -1);
  const double n = static_cast<double>(T * B * s.pixels());
  std::vector<double> mean(static_cast<size_t>(channels)), variance(static_cast<size_t>(channels));
  for (const bool second : {false, true})
    for (int64_t lane = 0; lane < s.lanes.count(); ++lane)
      for (int64_t unit = 0; unit < s.units() && s.lanes.row(lane) >= 0; ++unit) {
        float& x = current[static_cast<size_t>((lane / 64 * s.units() + unit) * 64 + lane % 64)];
        const auto c = static_cast<size_t>(unit % channels);
        if (!second) x = random.real() + static_cast<float>(centre);
        if (second)
          variance[c] += (x - mean[c]) * (x - mean[c]) / n;
        else
          mean[c] += x / n;
      }
  PanelStats p{s, current.data(), stats.data(), nullptr, threads};
  std::vector<double> scratch(static_cast<size_t>(ESL_DISPATCH(panel_stats_scratch, p)),
                              std::numeric_limits<double>::quiet_NaN());
  p.scratch = scratch.data();
  ESL_DISPATCH(panel_stats, p);
  for (size_t c = 0; c < static_cast<size_t>(channels); ++c) {
    const double actual_mean = stats[c], actual_variance = stats[static_cast<size_t>(channels) + c];
    if (n == 0) {
      ESL_EXPECT(std::isnan(actual_mean) && std::isnan(actual_variance));
      continue;
    }
    ESL_EXPECT(std::abs(actual_mean - mean[c]) <= 3e-7);
    ESL_EXPECT(std::abs(actual_variance - variance[c]) <= 2e-6 * variance[c]);
  }
}

}  // namespace

void run() {
  for (const double centre : {0., 1e4})
    for (const int threads : {1, 3}) {
      check(1, 1, 1, 1, 1, centre, threads);
      check(3, 5, 2, 3, 17, centre, threads);
      check(5, 20, 1, 1, 130, centre, threads);
      check(4, 32, 9, 8, 65, centre, threads);
      check(2, 0, 2, 2, 3, centre, threads);
    }
}
