// Mean and covariance of the channels of a tensor (pixels, channels).
//
// They give the statistics of every 1x1 convolution of it, w: mean w m and variance w C w^T,
// without the outputs. For an expansion to six times the channels that is a twelfth of the
// convolution's work.
#pragma once

#include <algorithm>
#include <cstdint>

#include "arena.h"
#include "channel_sums.h"
#include "pairs.h"
#include "products.h"
#include "scratch.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

// Symmetric (channels, channels), as panels: entry (k, j) at panel j / 16, row k.
struct Covariance {
  float *data;
  int64_t channels;

  static int64_t size(int64_t channels) { return group_count(channels) * channels * kGroup; }
  float *panel(int64_t first) const { return data + first * channels; }
  float &at(int64_t k, int64_t j) const {
    return data[j / kGroup * kGroup * channels + k * kGroup + j % kGroup];
  }
};

// Sums over one part of the pixels, of values less `shift`. Products have the type of x: rounding
// what is centred, at random, adds 1e-6 of a variance to it. Arrays are as long as all groups.
template <typename T>
inline void add_moments(float *sums, const Covariance &products, const T *x, int64_t pixels,
                        const float *shift) {
  const int64_t channels = products.channels, pitch = group_count(channels) * kGroup;
  T *centred = scratch<T>(Slot::kTile, kSumPixels * pitch);
  for (int64_t first = 0; first < pixels; first += kSumPixels) {
    const int64_t count = std::min(kSumPixels, pixels - first);
    for_vectors(channels, [&](int64_t c, int64_t lanes) {
      const T *in = x + first * channels + c;
      const Vec middle = load(shift + c);
      Vec sum = load(sums + c);
      for (int64_t i = 0; i < count; ++i) {
        const Vec value = load_lanes(in + i * channels, lanes) - middle;
        store(centred + i * pitch + c, value);
        sum += value;
      }
      store(sums + c, sum);
    });
    const T *left = pair_pixels(centred, pitch, count);
    for_panels(channels, [&](int64_t j, int64_t columns, auto vectors) {
      // Down to the diagonal.
      outer<decltype(vectors)::value>(products.panel(j), std::min(channels, j + columns), left,
                                      pitch, centred + j, pitch, count);
    });
  }
}

// mean (channels,) and covariance of x (pixels, channels).
template <typename T>
inline Status find_moments(Arena &arena, float *mean, const Covariance &covariance, const T *x,
                           int64_t pixels) {
  const int64_t channels = covariance.channels, size = Covariance::size(channels);
  const int64_t parts = range_count(pixels), pitch = group_count(channels) * kGroup;
  // A shift near the mean keeps the difference of squares exact.
  float *shift = arena.zeros(pitch);
  const int64_t some = std::min(pixels, kSumPixels);
  for (int64_t i = 0; i < some; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      shift[c] += x[i * channels + c] / static_cast<float>(some);
    }
  }
  float *sums = arena.zeros(parts * pitch), *products = arena.zeros(parts * size);
  Status status = parallel(parts, 1, [&](int64_t i, int64_t) {
    const int64_t first = range_begin(pixels, i, parts), last = range_begin(pixels, i + 1, parts);
    add_moments(sums + i * pitch, {products + i * size, channels}, x + first * channels,
                last - first, shift);
  });
  if (status) {
    return status;
  }
  double *offset = reinterpret_cast<double *>(arena.take(2 * channels));
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t i = 0; i < parts; ++i) {
      sum += sums[i * pitch + c];
    }
    offset[c] = sum / pixels;
    mean[c] = static_cast<float>(shift[c] + offset[c]);
  }
  return parallel(channels, 1, [&](int64_t j, int64_t) {
    for (int64_t k = 0; k <= j; ++k) {
      double sum = 0;
      for (int64_t i = 0; i < parts; ++i) {
        sum += Covariance{products + i * size, channels}.at(k, j);
      }
      const float value = static_cast<float>(sum / pixels - offset[k] * offset[j]);
      covariance.at(k, j) = covariance.at(j, k) = value;
    }
  });
}

}  // namespace spnas
