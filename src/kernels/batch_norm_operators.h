// Batch normalisation as operators: x, y (N, C, H, W); everything else (C,), but options (2,).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "batch_norm.h"
#include "call.h"
#include "tasks.h"

namespace spnas {

// The parameters of one normalisation stand in a row. These are their places within it.
struct ForwardNormInputs {
  enum { kGamma, kBeta, kMovingMean, kMovingVariance, kCount };
};
struct ForwardNormOutputs {
  enum {
    kMean,
    kInverseDeviation,
    kInferCount,
    kNewMovingMean = kInferCount,
    kNewMovingVariance,
    kTrainCount
  };
};
struct BackwardNormInputs {
  enum { kGamma, kBeta, kMean, kInverseDeviation, kCount };
};
struct BackwardNormOutputs {
  enum { kDGamma, kDBeta, kCount };
};

// What the parameter "options" holds; momentum is the weight of the old moving statistics.
struct NormOptions {
  enum { kEpsilon, kMomentum, kCount };
};

// One batch normalisation of a forward operator.
//
// Its inputs begin with parameter `input`, its outputs with parameter `output`; those that only
// training has are not touched in inference.
class ForwardNorm {
  using In = ForwardNormInputs;
  using Out = ForwardNormOutputs;

 public:
  ForwardNorm(const Call &call, int input, int options, int output)
      : gamma_(call.data(input + In::kGamma)), beta_(call.data(input + In::kBeta)),
        moving_mean_(call.data(input + In::kMovingMean)),
        moving_variance_(call.data(input + In::kMovingVariance)),
        epsilon_(call.data(options)[NormOptions::kEpsilon]),
        momentum_(call.data(options)[NormOptions::kMomentum]),
        mean_(call.data(output + Out::kMean)), inverse_(call.data(output + Out::kInverseDeviation)),
        call_(call), output_(output) {}

  // Statistics of a group of channels of x, planes of `s`, from the batch.
  void use_batch(const float *x, const Shape &s, int64_t first, int64_t last) const {
    const int64_t plane = s.plane();
    Sums sums[kMaxGroup];
    float shift[kMaxGroup];
    for (int64_t c = first; c < last; ++c) {
      shift[c - first] = choose_shift(x + c * plane, plane);
    }
    for (int64_t n = 0; n < s.n; ++n) {
      for (int64_t c = first; c < last; ++c) {
        add_sums(sums[c - first], x + (n * s.c + c) * plane, plane, shift[c - first]);
      }
    }
    for (int64_t c = first; c < last; ++c) {
      use_sums(c, sums[c - first], shift[c - first], static_cast<double>(s.channel()));
    }
  }

  // Statistics of a channel from the batch, whose `count` values less `shift` have these sums.
  void use_sums(int64_t c, const Sums &sums, float shift, double count) const {
    const Moments m = moments(sums, shift, count, epsilon_);
    // As MindSpore's operator does, the moving variance averages the unbiased one.
    const float unbiased = static_cast<float>(count / std::max(1.0, count - 1));
    mean_[c] = m.mean;
    inverse_[c] = m.inverse_deviation;
    call_.data(output_ + Out::kNewMovingMean)[c] =
        momentum_ * moving_mean_[c] + (1 - momentum_) * m.mean;
    call_.data(output_ + Out::kNewMovingVariance)[c] =
        momentum_ * moving_variance_[c] + (1 - momentum_) * m.variance * unbiased;
  }

  // Statistics of all channels from the moving ones.
  void use_moving(int64_t channels) const {
    for (int64_t c = 0; c < channels; ++c) {
      mean_[c] = moving_mean_[c];
      inverse_[c] = 1 / std::sqrt(moving_variance_[c] + epsilon_);
    }
  }

  Normalise map(int64_t c) const { return {mean_[c], inverse_[c], gamma_[c], beta_[c]}; }

 private:
  const float *gamma_, *beta_, *moving_mean_, *moving_variance_;
  const float epsilon_, momentum_;
  float *mean_, *inverse_;
  const Call &call_;
  const int output_;
};

// One batch normalisation of a backward operator.
//
// Its inputs begin with parameter `input`, its outputs with parameter `output`. Mean and deviation
// are those of the batch itself, whose derivatives are the correction.
class BackwardNorm {
  using In = BackwardNormInputs;
  using Out = BackwardNormOutputs;

 public:
  BackwardNorm(const Call &call, int input, int output)
      : gamma_(call.data(input + In::kGamma)), beta_(call.data(input + In::kBeta)),
        mean_(call.data(input + In::kMean)), inverse_(call.data(input + In::kInverseDeviation)),
        dgamma_(call.data(output + Out::kDGamma)), dbeta_(call.data(output + Out::kDBeta)) {}

  Normalise map(int64_t c) const { return {mean_[c], inverse_[c], gamma_[c], beta_[c]}; }

  // Writes dgamma and dbeta of a channel, of which `sums` are the gradient sums over `count`
  // values.
  Correction finish(int64_t c, const Sums &sums, double count) const {
    dgamma_[c] = static_cast<float>(sums.second * inverse_[c]);
    dbeta_[c] = static_cast<float>(sums.first);
    return {static_cast<float>(sums.first / count),
            static_cast<float>(sums.second / count * inverse_[c] * inverse_[c])};
  }

 private:
  const float *gamma_, *beta_, *mean_, *inverse_;
  float *dgamma_, *dbeta_;
};

// The places of the parameters in forward direction, with kOutputs statistics.
template <int kOutputs>
struct NormPlaces {
  enum {
    kX,
    kNorm,
    kOptions = kNorm + ForwardNormInputs::kCount,
    kY,
    kStatistics,
    kCount = kStatistics + kOutputs
  };
};

template <typename At>
Status check_norm(const Call &call) {
  if (Status status = call.check(At::kCount)) {
    return status;
  }
  if (Status status = check_channels(call, At::kX,
                                     {{At::kNorm, At::kOptions}, {At::kStatistics, At::kCount}})) {
    return status;
  }
  const bool fits =
      call.is_shape(At::kOptions, {NormOptions::kCount}) && same_shape(call, At::kX, At::kY);
  return fits ? kOk : kBadShape;
}

template <bool kRelu>
Status norm_train(const Call &call) {
  using At = NormPlaces<ForwardNormOutputs::kTrainCount>;
  if (Status status = check_norm<At>(call)) {
    return status;
  }
  const Shape s(call, At::kX);
  const ForwardNorm norm(call, At::kNorm, At::kOptions, At::kStatistics);
  const float *x = call.data(At::kX);
  float *y = call.data(At::kY);
  const int64_t plane = s.plane();
  return parallel(s.c, channel_group(plane), [&](int64_t first, int64_t last) {
    norm.use_batch(x, s, first, last);
    // Backwards, since the last samples are still in cache.
    for (int64_t n = s.n - 1; n >= 0; --n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t i = (n * s.c + c) * plane;
        norm.map(c).apply<kRelu>(y + i, x + i, plane);
      }
    }
  });
}

template <bool kRelu>
Status norm_infer(const Call &call) {
  using At = NormPlaces<ForwardNormOutputs::kInferCount>;
  if (Status status = check_norm<At>(call)) {
    return status;
  }
  const Shape s(call, At::kX);
  const ForwardNorm norm(call, At::kNorm, At::kOptions, At::kStatistics);
  const float *x = call.data(At::kX);
  float *y = call.data(At::kY);
  norm.use_moving(s.c);
  const int64_t plane = s.plane();
  return parallel(s.n * s.c, plane_group(plane), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      norm.map(i % s.c).apply<kRelu>(y + i * plane, x + i * plane, plane);
    }
  });
}

template <bool kRelu>
Status norm_backward(const Call &call) {
  enum {
    kX,
    kNorm,
    kDy = kNorm + BackwardNormInputs::kCount,
    kDx,
    kGradients,
    kCount = kGradients + BackwardNormOutputs::kCount
  };
  if (Status status = call.check(kCount)) {
    return status;
  }
  if (Status status = check_channels(call, kX, {{kNorm, kDy}, {kGradients, kCount}})) {
    return status;
  }
  if (!same_shape(call, kX, kDy) || !same_shape(call, kX, kDx)) {
    return kBadShape;
  }
  const Shape s(call, kX);
  const BackwardNorm norm(call, kNorm, kGradients);
  const float *x = call.data(kX), *dy = call.data(kDy);
  float *dx = call.data(kDx);
  const int64_t plane = s.plane();
  const double count = static_cast<double>(s.channel());
  return parallel(s.c, channel_group(plane), [&](int64_t first, int64_t last) {
    Sums sums[kMaxGroup];
    for (int64_t n = 0; n < s.n; ++n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t i = (n * s.c + c) * plane;
        norm.map(c).template add_gradient_sums<kRelu>(sums[c - first], dy + i, x + i, plane);
      }
    }
    Correction correction[kMaxGroup];
    for (int64_t c = first; c < last; ++c) {
      correction[c - first] = norm.finish(c, sums[c - first], count);
    }
    for (int64_t n = s.n - 1; n >= 0; --n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t i = (n * s.c + c) * plane;
        norm.map(c).template gradient<kRelu>(dx + i, dy + i, x + i, plane, correction[c - first]);
      }
    }
  });
}

}  // namespace spnas
