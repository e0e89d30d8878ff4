// Statistics of channels, from sums over parts of a tensor.
//
// Within a part, of a few hundred pixels, sums run in float; from part to part in double and in a
// fixed order, so that results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "products.h"
#include "scratch.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

// Pixels over which a sum runs in float.
constexpr int64_t kSumPixels = 256;

// Floats of a task's part of a wide tensor: about half of a second-level cache.
constexpr int64_t kTileFloats = 48 * 1024;

// Pixels whose channels fit into so many floats; a multiple of the rows of a product's tile.
inline int64_t tile_pixels(int64_t channels) {
  return std::clamp<int64_t>(kTileFloats / channels / 12 * 12, 24, kSumPixels / 12 * 12);
}

// Parts of the pixels of a tensor that have sums of their own, whatever the number of threads.
constexpr int64_t kMaxRanges = 8;

inline int64_t range_count(int64_t pixels) {
  return std::min(kMaxRanges, std::max<int64_t>(1, pixels / kSumPixels));
}

// The first of `count` things that part `i` of `parts` has; the last is the first of part i + 1.
inline int64_t range_begin(int64_t count, int64_t i, int64_t parts) { return count * i / parts; }

// The sum of parts that lie `distance` apart, in scratch of the thread.
inline const float *add_parts(const float *part, int64_t parts, int64_t distance, int64_t size) {
  float *total = scratch(Slot::kGroup, size);
  std::memcpy(total, part, size * sizeof(float));
  for (int64_t i = 1; i < parts; ++i) {
    part += distance;
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) {
      total[j] += part[j];
    }
  }
  return total;
}

// Mean and variance of a channel from parts, whose sums of squares are about their own means.
struct Spread {
  double count = 0, sum = 0, squares = 0;

  void add(double part_count, double part_sum, double part_squares) {
    count += part_count;
    sum += part_sum;
    squares += part_squares + part_sum * part_sum / part_count;
  }

  double mean() const { return sum / count; }
  // Rounding may leave less than 0; NaN passes.
  double variance() const {
    const double value = (squares - sum * sum / count) / count;
    return value < 0 ? 0 : value;
  }
};

// total[j] += channel j of a group's vectors.
inline void add_channels(double *total, const Vec (&sum)[kVecs]) {
  for (int j = 0; j < kGroup; ++j) {
    total[j] += sum[j / kLanes][j % kLanes];
  }
}

// The sum of term(pixel), which are Channels, over some pixels. Each addition waits for the one
// before it, so several sums are under way; those of float tensors run in the order of pixels.
template <int kV, typename T, typename Term>
SPNAS_INLINE Channels<kV> add_up(int64_t pixels, const Term &term) {
  constexpr int kSums = std::is_same_v<T, float> ? 1 : 4;
  Channels<kV> sums[kSums] = {};
  const auto add = [](Channels<kV> &sum, const Channels<kV> &value) SPNAS_ALWAYS {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      sum.v[v] += value.v[v];
    }
  };
  int64_t i = 0;
  for (; i + kSums <= pixels; i += kSums) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) {
      add(sums[s], term(i + s));
    }
  }
  for (; i < pixels; ++i) {
    add(sums[0], term(i));
  }
  for (int s = 1; s < kSums; ++s) {
    add(sums[0], sums[s]);
  }
  return sums[0];
}

// Sums of up to kSumPixels pixels of `count` channels, which kV vectors hold, of a tensor
// (pixels, pitch): sum, and sum of squares about the mean of these pixels, (2, 16). Where the
// tensor is bfloat16 they are sums of what has been rounded, since that is normalised.
template <int kV, typename T>
inline void part_sums(float *out, const T *x, int64_t pitch, int64_t count, int64_t pixels) {
  const Channels<kV> sum =
      add_up<kV, T>(pixels, [&](int64_t i) { return load_part<kV>(x + i * pitch, count); });
  Channels<kV> mean;
  for (int v = 0; v < kV; ++v) {
    mean.v[v] = sum.v[v] / static_cast<float>(pixels);
  }
  const Channels<kV> squares = add_up<kV, T>(pixels, [&](int64_t i) {
    Channels<kV> value = load_part<kV>(x + i * pitch, count);
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      const Vec distance = value.v[v] - mean.v[v];
      value.v[v] = distance * distance;
    }
    return value;
  });
  store_channels(out, sum);
  store_channels(out + kGroup, squares);
}

}  // namespace spnas
