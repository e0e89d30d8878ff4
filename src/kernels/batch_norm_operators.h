// Batch normalisation as operators: x, y (N, C, H, W); everything else (C,), but options (2,) =
// epsilon, momentum.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "batch_norm.h"
#include "call.h"

namespace spnas {

// One batch normalisation of a forward operator.
//
// Inputs, from index `input` on: gamma, beta, moving mean, moving variance. Outputs, from index
// `output` on: mean, inverse deviation, and in training the new moving mean and variance.
class ForwardNorm {
 public:
  ForwardNorm(const Call &call, int input, int options, int output)
      : gamma_(call.data(input)), beta_(call.data(input + 1)), moving_mean_(call.data(input + 2)),
        moving_variance_(call.data(input + 3)), epsilon_(call.data(options)[0]),
        momentum_(call.data(options)[1]), mean_(call.data(output)), inverse_(call.data(output + 1)),
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
    call_.data(output_ + 2)[c] = momentum_ * moving_mean_[c] + (1 - momentum_) * m.mean;
    call_.data(output_ + 3)[c] =
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
// Inputs, from index `input` on: gamma, beta, mean, inverse deviation. Outputs, from `output` on:
// dgamma, dbeta. kBatch: mean and deviation are those of the batch itself, which adds their
// derivatives.
template <bool kBatch>
class BackwardNorm {
 public:
  BackwardNorm(const Call &call, int input, int output)
      : gamma_(call.data(input)), beta_(call.data(input + 1)), mean_(call.data(input + 2)),
        inverse_(call.data(input + 3)), dgamma_(call.data(output)), dbeta_(call.data(output + 1)) {}

  Normalise map(int64_t c) const { return {mean_[c], inverse_[c], gamma_[c], beta_[c]}; }

  // Writes dgamma and dbeta of a channel, of which `sums` are the gradient sums over `count`
  // values.
  Correction finish(int64_t c, const Sums &sums, double count) const {
    dgamma_[c] = static_cast<float>(sums.second * inverse_[c]);
    dbeta_[c] = static_cast<float>(sums.first);
    if (!kBatch) {
      return {};
    }
    return {static_cast<float>(sums.first / count),
            static_cast<float>(sums.second / count * inverse_[c] * inverse_[c])};
  }

 private:
  const float *gamma_, *beta_, *mean_, *inverse_;
  float *dgamma_, *dbeta_;
};

// x, gamma, beta, moving mean, moving variance, options
//   -> y, mean, inverse deviation, new moving mean, new moving variance
template <bool kRelu>
Status norm_train(const Call &call) {
  if (Status status = call.check(11)) {
    return status;
  }
  if (Status status = check_channels(call, 0, {1, 2, 3, 4, 7, 8, 9, 10})) {
    return status;
  }
  if (!call.is_shape(5, {2}) || !same_shape(call, 0, 6)) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const ForwardNorm norm(call, 1, 5, 7);
  const float *x = call.data(0);
  float *y = call.data(6);
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

// x, gamma, beta, moving mean, moving variance, options -> y, mean, inverse deviation
template <bool kRelu>
Status norm_infer(const Call &call) {
  if (Status status = call.check(9)) {
    return status;
  }
  if (Status status = check_channels(call, 0, {1, 2, 3, 4, 7, 8})) {
    return status;
  }
  if (!call.is_shape(5, {2}) || !same_shape(call, 0, 6)) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const ForwardNorm norm(call, 1, 5, 7);
  const float *x = call.data(0);
  float *y = call.data(6);
  norm.use_moving(s.c);
  const int64_t plane = s.plane();
  return parallel(s.n * s.c, std::max<int64_t>(1, kGrain / plane),
                  [&](int64_t first, int64_t last) {
                    for (int64_t i = first; i < last; ++i) {
                      norm.map(i % s.c).apply<kRelu>(y + i * plane, x + i * plane, plane);
                    }
                  });
}

// x, gamma, beta, mean, inverse deviation, dy -> dx, dgamma, dbeta
template <bool kRelu, bool kBatch>
Status norm_backward(const Call &call) {
  if (Status status = call.check(9)) {
    return status;
  }
  if (Status status = check_channels(call, 0, {1, 2, 3, 4, 7, 8})) {
    return status;
  }
  if (!same_shape(call, 0, 5) || !same_shape(call, 0, 6)) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const BackwardNorm<kBatch> norm(call, 1, 7);
  const float *x = call.data(0), *dy = call.data(5);
  float *dx = call.data(6);
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
