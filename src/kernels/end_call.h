// The call of a stem or a head: convolution, normalisation and what follows them.
#pragma once

#include <cstdint>

#include "call.h"
#include "norm_call.h"
#include "vectors.h"

namespace spnas {

// In training. The convolution's output lies in groups of 16 channels, (groups, pixels, 16).
struct EndTrainPlaces {
  enum {
    kX,
    kWeight,
    kNorm,
    kOptions = kNorm + NormInputs::kCount,
    kY,
    kConvolved,
    kStatistics,
    kMoving,
    kCount = kMoving + 2
  };

  // All but x, weight and y.
  static bool fits(const Call &call, int64_t outputs, int64_t pixels) {
    return call.is_shape(kOptions, {Options::kCount}) &&
           call.is_shape(kConvolved, {group_count(outputs), pixels, kGroup}) &&
           call.is_shape(kStatistics, {StatisticsRows::kCount, outputs}) &&
           call.are_channels({{kNorm, kOptions}, {kMoving, kCount}}, outputs);
  }
};

// In inference; folded: a bias in place of the normalisation.
struct EndInferPlaces {
  static constexpr int kX = 0, kWeight = 1, kNorm = 2;
  const int options, y, count;

  explicit EndInferPlaces(bool folded)
      : options(kNorm + (folded ? 1 : NormInputs::kCount)), y(options + 1), count(y + 1) {}

  // All but x, weight and y.
  bool fits(const Call &call, int64_t outputs) const {
    return call.is_shape(options, {Options::kCount}) &&
           call.are_channels({{kNorm, options}}, outputs);
  }
};

}  // namespace spnas
