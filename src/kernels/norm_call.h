// Batch normalisation within an operator: its parameters, the map that they give, its gradient.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "arena.h"
#include "call.h"
#include "channel_sums.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

// The four parameters of a normalisation, in a row.
struct NormInputs {
  enum { kGamma, kBeta, kMovingMean, kMovingVariance, kCount };
};

// Statistics that backward needs, rows of a parameter (kCount, channels).
struct StatisticsRows {
  enum { kMean, kInverse, kCount };
};

// What operators with a normalisation need to know, the parameter "options". Momentum is the weight
// of the old moving statistics; residual is 1 for a block that adds its input; ceiling is the most
// that the ReLU of a stem or head gives, 6 for ReLU6, infinite for others.
struct Options {
  enum { kEpsilon, kMomentum, kResidual, kCeiling, kCount };
};

// A factor and a shift per channel, as long as all groups and zero where channels are not active:
// such a channel is then 0 everywhere behind its ReLU, and so are its gradients.
struct Affine {
  float *scale, *shift;

  Affine(Arena &arena, int64_t channels)
      : scale(arena.zeros(group_count(channels) * kGroup)),
        shift(arena.zeros(group_count(channels) * kGroup)) {}

  void set(int64_t c, float mean, float inverse, float gamma, float beta) const {
    scale[c] = gamma * inverse;
    shift[c] = beta - mean * scale[c];
  }
};

// The map of inference: from moving statistics, or, where normalisation is folded into the
// convolution, a bias.
inline Affine moving_affine(const Call &call, int input, int options, bool folded, int64_t channels,
                            int64_t active, Arena &arena) {
  const Affine affine(arena, channels);
  const float epsilon = call.data(options)[Options::kEpsilon];
  for (int64_t c = 0; c < active; ++c) {
    if (folded) {
      affine.set(c, 0, 1, 1, call.data(input)[c]);
    } else {
      affine.set(c, call.data(input + NormInputs::kMovingMean)[c],
                 1 / std::sqrt(call.data(input + NormInputs::kMovingVariance)[c] + epsilon),
                 call.data(input + NormInputs::kGamma)[c], call.data(input + NormInputs::kBeta)[c]);
    }
  }
  return affine;
}

// A normalisation in training: four inputs, two outputs for the moving statistics, and two rows of
// statistics for backward.
struct TrainNorm {
  const float *gamma, *beta, *moving_mean, *moving_variance;
  float *new_mean, *new_variance, *mean, *inverse;
  float epsilon, momentum;

  // `statistics` are the two rows, of so many channels.
  TrainNorm(const Call &call, int input, int options, float *statistics, int64_t channels,
            int output)
      : TrainNorm(call.data(input + NormInputs::kGamma), call.data(input + NormInputs::kBeta), call,
                  input + NormInputs::kMovingMean, options, statistics, channels, output) {}

  // The moving statistics are inputs from `moving` on.
  TrainNorm(const float *gamma, const float *beta, const Call &call, int moving, int options,
            float *statistics, int64_t channels, int output)
      : gamma(gamma), beta(beta), moving_mean(call.data(moving)),
        moving_variance(call.data(moving + 1)), new_mean(call.data(output)),
        new_variance(call.data(output + 1)), mean(statistics + StatisticsRows::kMean * channels),
        inverse(statistics + StatisticsRows::kInverse * channels),
        epsilon(call.data(options)[Options::kEpsilon]),
        momentum(call.data(options)[Options::kMomentum]) {}

  // What holds for channels that are not active: their moving statistics stay.
  void keep(int64_t channels) const {
    const int64_t bytes = channels * sizeof(float);
    std::memcpy(new_mean, moving_mean, bytes);
    std::memcpy(new_variance, moving_variance, bytes);
    std::memset(mean, 0, bytes);
    std::memset(inverse, 0, bytes);
  }

  // Statistics of a channel of `count` values.
  void use(int64_t c, double batch_mean, double variance, double count,
           const Affine &affine) const {
    mean[c] = static_cast<float>(batch_mean);
    inverse[c] = static_cast<float>(1 / std::sqrt(variance + epsilon));
    affine.set(c, mean[c], inverse[c], gamma[c], beta[c]);
    // As MindSpore's operator does, the moving variance averages the unbiased one.
    const double unbiased = variance * count / std::max(1.0, count - 1);
    new_mean[c] = momentum * moving_mean[c] + (1 - momentum) * mean[c];
    new_variance[c] = momentum * moving_variance[c] + (1 - momentum) * static_cast<float>(unbiased);
  }

  // From sums (groups, parts, 2, 16), as part_sums() gives them, of which part i has pixels(i).
  template <typename Pixels>
  Status use_parts(int64_t channels, int64_t parts, const float *sums, const Pixels &pixels,
                   const Affine &affine) const {
    return parallel(channels, kGroup, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        Spread spread;
        for (int64_t i = 0; i < parts; ++i) {
          const float *part = sums + (c / kGroup * parts + i) * 2 * kGroup + c % kGroup;
          spread.add(static_cast<double>(pixels(i)), part[0], part[kGroup]);
        }
        use(c, spread.mean(), spread.variance(), spread.count, affine);
      }
    });
  }
};

// The gradient of a normalisation's input,
//
//     d in = scale * (g - mean g - (in - mean) * slope)
//     slope = sum g (in - mean) / (n variance)
//
// as scale * g + in_factor * in + constant. Arrays are as long as all groups, and zero where
// channels are not active.
struct NormGradient {
  float *mean, *inverse, *scale, *shift;                // known beforehand
  float *in_factor, *constant, *mean_gradient, *slope;  // when the two sums are known

  // `beta` may be null: then shift, which tells where a ReLU was active, stays 0.
  NormGradient(Arena &arena, int64_t channels, int64_t active, const float *gamma,
               const float *beta, const float *statistics) {
    for (float **array :
         {&mean, &inverse, &scale, &shift, &in_factor, &constant, &mean_gradient, &slope}) {
      *array = arena.zeros(group_count(channels) * kGroup);
    }
    for (int64_t c = 0; c < active; ++c) {
      mean[c] = statistics[StatisticsRows::kMean * channels + c];
      inverse[c] = statistics[StatisticsRows::kInverse * channels + c];
      scale[c] = gamma[c] * inverse[c];
      shift[c] = beta == nullptr ? 0 : beta[c] - mean[c] * scale[c];
    }
  }

  // With the sums of g and of g * (in - mean) over `count` values.
  void finish(int64_t c, double first, double second, double count) const {
    mean_gradient[c] = static_cast<float>(first / count);
    slope[c] = static_cast<float>(second / count * inverse[c] * inverse[c]);
    in_factor[c] = -scale[c] * slope[c];
    constant[c] = -scale[c] * mean_gradient[c] - in_factor[c] * mean[c];
  }

  // The same, and the gradients of gamma and beta.
  void finish(int64_t c, double first, double second, double count, float *dgamma,
              float *dbeta) const {
    dgamma[c] = static_cast<float>(second * inverse[c]);
    dbeta[c] = static_cast<float>(first);
    finish(c, first, second, count);
  }
};

}  // namespace spnas
