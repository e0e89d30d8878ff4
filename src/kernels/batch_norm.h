// Batch normalisation of one plane, optionally followed by ReLU:
// y = max(0, (x - mean) * scale + beta) with scale = gamma / sqrt(variance + epsilon).
//
// A channel's planes are read twice, first for its sums and then to apply them; the channel is
// small enough that the second time finds most of it in cache. Backward needs x, gamma, beta, mean
// and inverse deviation only: where ReLU was active is computed again from x, so y need not be kept
// for it.
//
// Sums run in float within a plane, in vectors, and in double from plane to plane.
#pragma once

#include <cmath>
#include <cstdint>

namespace spnas {

// Of values, and of their squares or products.
struct Sums {
  double first = 0, second = 0;
};

// The statistics of a channel.
struct Moments {
  float mean, variance, inverse_deviation;
};

// first += sum of x - shift, second += sum of (x - shift)^2.
inline void add_sums(Sums &sums, const float *x, int64_t size, float shift) {
  float first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
  for (int64_t i = 0; i < size; ++i) {
    const float d = x[i] - shift;
    first += d;
    second += d * d;
  }
  sums.first += first;
  sums.second += second;
}

// A shift near the mean keeps the difference of squares exact. The mean of one of n planes is near
// enough: its own distance to the mean, squared, is at most n times the variance.
inline float choose_shift(const float *plane, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) {
    sum += plane[i];
  }
  return sum / static_cast<float>(size);
}

inline Moments moments(const Sums &sums, float shift, double count, float epsilon) {
  const double offset = sums.first / count;
  double variance = sums.second / count - offset * offset;
  if (variance < 0) {  // rounding; false for NaN, which passes
    variance = 0;
  }
  return {static_cast<float>(shift + offset), static_cast<float>(variance),
          static_cast<float>(1 / std::sqrt(variance + epsilon))};
}

// How the batch's statistics change a channel's gradient: mean of g and mean of g * (x - mean) /
// variance, with g as below. Zero where the statistics are constants.
struct Correction {
  float mean_gradient = 0, slope = 0;
};

// The affine map of a channel in forward direction.
struct Normalise {
  float mean, scale, beta;

  Normalise(float mean, float inverse_deviation, float gamma, float beta)
      : mean(mean), scale(gamma * inverse_deviation), beta(beta) {}

  float operator()(float x) const { return (x - mean) * scale + beta; }

  // y may be x. kRelu: comparison written so that NaN passes.
  template <bool kRelu>
  void apply(float *y, const float *x, int64_t size) const {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const float v = (*this)(x[i]);
      y[i] = kRelu && v < 0 ? 0 : v;
    }
  }

  // dy, or 0 where ReLU was not active.
  template <bool kRelu>
  float active(float x, float dy) const {
    return kRelu && !((*this)(x) > 0) ? 0 : dy;
  }

  // first += sum of g, second += sum of g * (x - mean), with g = dy where ReLU was active.
  template <bool kRelu>
  void add_gradient_sums(Sums &sums, const float *dy, const float *x, int64_t size) const {
    float first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
    for (int64_t i = 0; i < size; ++i) {
      const float g = active<kRelu>(x[i], dy[i]);
      first += g;
      second += g * (x[i] - mean);
    }
    sums.first += first;
    sums.second += second;
  }

  // dx = scale * (g - mean of g - (x - mean) * slope). dx may be dy or x.
  template <bool kRelu>
  void gradient(float *dx, const float *dy, const float *x, int64_t size,
                const Correction &correction) const {
    const float mean_gradient = correction.mean_gradient, slope = correction.slope;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const float g = active<kRelu>(x[i], dy[i]);
      dx[i] = scale * (g - mean_gradient - (x[i] - mean) * slope);
    }
  }
};

}  // namespace spnas
