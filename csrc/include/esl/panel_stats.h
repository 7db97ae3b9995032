// Mean and variance of each channel of a panel: what a batch norm needs.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/lanes.h"
#include "esl/stream.h"

namespace esl {

struct PanelStats {
  PanelShape shape;
  const float* current;
  double* stats;    // [2, channels]: mean, biased variance; NaN where there is no value
  double* scratch;  // panel_stats_scratch() doubles
  int threads;
};

ESL_DECLARE_CPU(int64_t panel_stats_scratch(const PanelStats& p))
ESL_DECLARE_CPU(void panel_stats(const PanelStats& p))

// On CUDA the panel may be of any dtype.
int64_t cuda_panel_stats_scratch(const PanelShape& shape);  // doubles
void launch_panel_stats(const PanelStats& p, Dtype dtype, Stream stream);

}  // namespace esl
