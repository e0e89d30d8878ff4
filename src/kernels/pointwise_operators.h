// 1x1 convolution without bias as operators: x (N, C, H, W), weight (O, C, 1, 1), y (N, O, H, W).
//
// A matrix product for every sample, in which all matrices are read as they lie in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "call.h"
#include "convolution.h"
#include "convolution_tasks.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

inline bool is_pointwise(const Call &call, int x, int weight, int y) {
  if (call.ndims[x] != 4 || call.ndims[weight] != 4 || !Shape(call, x).valid()) {
    return false;
  }
  const Shape s(call, x);
  const int64_t rows = Shape(call, weight).n;
  return rows > 0 && call.is_shape(weight, {rows, s.c, 1, 1}) && is_output(call, y, s, rows, 1);
}

// y (samples, rows, pixels) = weight (rows, channels) * x (samples, channels, pixels)
inline Status multiply(float *y, const float *weight, const float *x, int64_t samples, int64_t rows,
                       int64_t channels, int64_t pixels) {
  const Convolution conv = make_pointwise(weight, /*bias=*/nullptr, channels, /*relu=*/false);
  const Parts parts{samples, rows, pixels, kPartPixels};
  return parallel(parts.count(), 1,
                  [&](int64_t i, int64_t) { pointwise(conv, parts, parts[i], y, x); });
}

// Sums of products over the pixels of a few samples, (rows, channels): total += dy * x^T, in tiles
// of kTileRows x kTileColumns vectors, each of whose lanes sums pixels of its own.
class WeightGradient {
 public:
  WeightGradient(int64_t rows, int64_t channels, int64_t pixels)
      : rows_(rows), channels_(channels), pixels_(pixels) {}

  void add(float *total, const float *dy, const float *x, int64_t samples) const {
    int64_t row = 0;
    for (; row + kTileRows <= rows_; row += kTileRows) {
      add_row<kTileRows>(total, dy, x, samples, row);
    }
    for (; row + 2 <= rows_; row += 2) {
      add_row<2>(total, dy, x, samples, row);
    }
    for (; row < rows_; ++row) {
      add_row<1>(total, dy, x, samples, row);
    }
  }

 private:
#if defined(__AVX512F__) || defined(__aarch64__)
  static constexpr int kTileRows = 6;
#else
  static constexpr int kTileRows = 2;
#endif
  static constexpr int kTileColumns = 4;

  template <int kR>
  void add_row(float *total, const float *dy, const float *x, int64_t samples, int64_t row) const {
    int64_t column = 0;
    for (; column + kTileColumns <= channels_; column += kTileColumns) {
      add_tile<kR, kTileColumns>(total, dy, x, samples, row, column);
    }
    for (; column < channels_; ++column) {
      add_tile<kR, 1>(total, dy, x, samples, row, column);
    }
  }

  template <int kR, int kC>
  void add_tile(float *total, const float *dy, const float *x, int64_t samples, int64_t row,
                int64_t column) const {
    Vec sums[kR][kC] = {};
    float rest[kR][kC] = {};
    for (int64_t n = 0; n < samples; ++n) {
      const float *a = dy + (n * rows_ + row) * pixels_,
                  *b = x + (n * channels_ + column) * pixels_;
      int64_t i = 0;
      for (; i + kLanes <= pixels_; i += kLanes) {
        Vec right[kC];
#pragma GCC unroll 4
        for (int c = 0; c < kC; ++c) {
          right[c] = load(b + c * pixels_ + i);
        }
#pragma GCC unroll 6
        for (int r = 0; r < kR; ++r) {
          const Vec left = load(a + r * pixels_ + i);
#pragma GCC unroll 4
          for (int c = 0; c < kC; ++c) {
            sums[r][c] += left * right[c];
          }
        }
      }
      for (; i < pixels_; ++i) {
        for (int r = 0; r < kR; ++r) {
          for (int c = 0; c < kC; ++c) {
            rest[r][c] += a[r * pixels_ + i] * b[c * pixels_ + i];
          }
        }
      }
    }
    for (int r = 0; r < kR; ++r) {
      for (int c = 0; c < kC; ++c) {
        total[(row + r) * channels_ + column + c] += rest[r][c] + sum_lanes(sums[r][c]);
      }
    }
  }

  const int64_t rows_, channels_, pixels_;
};

inline Status pointwise_forward(const Call &call) {
  enum { kX, kWeight, kY, kCount };
  if (Status status = call.check(kCount)) {
    return status;
  }
  if (!is_pointwise(call, kX, kWeight, kY)) {
    return kBadShape;
  }
  const Shape s(call, kX);
  const int64_t rows = Shape(call, kWeight).n;
  return multiply(call.data(kY), call.data(kWeight), call.data(kX), s.n, rows, s.c, s.plane());
}

// (rows, channels) as (channels, rows).
inline std::vector<float> transpose(const float *weight, int64_t rows, int64_t channels) {
  std::vector<float> transposed(rows * channels);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c) {
      transposed[c * rows + row] = weight[row * channels + c];
    }
  }
  return transposed;
}

// dweight (rows, channels) = sum of dy (samples, rows, pixels) * x (samples, channels, pixels)^T
inline Status multiply_transposed(float *dweight, const float *dy, const float *x, int64_t samples,
                                  int64_t rows, int64_t channels, int64_t pixels) {
  const int64_t size = rows * channels;
  // A sum of its own for each of at most kSums groups of samples, whatever the number of threads.
  constexpr int64_t kSums = 8;
  const int64_t group = divide_up(samples, kSums), groups = divide_up(samples, group);
  // Samples that stay in the second-level cache while all tiles read them.
  const int64_t together = std::max<int64_t>(1, kKept / ((rows + channels) * pixels));
  std::vector<float> totals(groups * size);
  const WeightGradient gradient(rows, channels, pixels);
  const Status status = parallel(samples, group, [&](int64_t first, int64_t last) {
    float *total = totals.data() + first / group * size;
    for (int64_t n = first; n < last; n += together) {
      gradient.add(total, dy + n * rows * pixels, x + n * channels * pixels,
                   std::min(together, last - n));
    }
  });
  if (status) {
    return status;
  }
  return parallel(size, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      float sum = 0;
      for (int64_t g = 0; g < groups; ++g) {
        sum += totals[g * size + i];
      }
      dweight[i] = sum;
    }
  });
}

inline Status pointwise_backward(const Call &call) {
  enum { kX, kWeight, kDy, kDx, kDWeight, kCount };
  if (Status status = call.check(kCount)) {
    return status;
  }
  if (!is_pointwise(call, kX, kWeight, kDy) || !same_shape(call, kX, kDx) ||
      !same_shape(call, kWeight, kDWeight)) {
    return kBadShape;
  }
  const Shape s(call, kX);
  const int64_t rows = Shape(call, kWeight).n;
  const float *x = call.data(kX), *dy = call.data(kDy);
  const std::vector<float> transposed = transpose(call.data(kWeight), rows, s.c);
  const Status status = multiply(call.data(kDx), transposed.data(), dy, s.n, s.c, rows, s.plane());
  return status ? status
                : multiply_transposed(call.data(kDWeight), dy, x, s.n, rows, s.c, s.plane());
}

}  // namespace spnas
