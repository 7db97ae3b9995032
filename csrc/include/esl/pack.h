// Op pack: float rows <-> spike words and panels.
//
// A row holds one lane's elements in (channel, pixel) order, words and panels hold them in (pixel, channel) order. Rows
// that are in (pixel, channel) order too, as in a channels-last feature map, are those of one pixel with more channels.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/lanes.h"
#include "esl/stream.h"

namespace esl {

struct PackParams {
  Lanes lanes;
  int64_t channels, pixels;
  int planes;
  float scale;
  const void* rows;  // [T * B, channels, pixels]
  Dtype dtype;
  uint64_t* words;  // [planes, groups, pixels, channels]
  int threads;
};

struct UnpackParams {
  Lanes lanes;
  int64_t channels, pixels;
  int planes;
  float scale;
  const uint64_t* words;
  void* rows;
  Dtype dtype;
  int threads;
};

struct PanelParams {
  Lanes lanes;
  int64_t channels, pixels;
  void* rows;
  Dtype dtype;
  float* panels;  // [groups, pixels, channels, 64]
  int threads;
};

// False if an element is not scale * k with 0 <= k < 2^planes; the words are then unfinished.
ESL_DECLARE_CPU(bool pack(const PackParams& p))
ESL_DECLARE_CPU(void unpack(const UnpackParams& p))
ESL_DECLARE_CPU(void to_panels(const PanelParams& p))  // padding lanes become zero
ESL_DECLARE_CPU(void from_panels(const PanelParams& p))

// The same on CUDA, where panels are of the rows' dtype. *broken becomes 1 where pack would return false.
void launch_pack(const PackParams& p, int32_t* broken, Stream stream);
void launch_unpack(const UnpackParams& p, Stream stream);
void launch_to_panels(const PanelParams& p, Stream stream);
void launch_from_panels(const PanelParams& p, Stream stream);

}  // namespace esl
