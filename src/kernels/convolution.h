// Convolution over all channels, forward; with bias and ReLU where asked for.
//
// A tile of kRows output channels and a few vectors of pixels is summed in registers over all
// inputs:
//
//     y[row][i] = bias[row] + sum over channels c and taps t of
//                 weight[row][c * taps + t] * x[c * pitch + i + offset[t]]
//
// For 1x1 this is a matrix product that reads x as it lies in memory. Larger kernels read planes
// packed as for the depthwise convolution, where a tap has the same offset for all pixels
// (depthwise.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "scratch.h"
#include "vectors.h"

namespace spnas {

// Sums of kRows x kMaxTile vectors fill the registers and leave some for the factors.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
constexpr int kMaxTile = 3;

typedef float Quarter __attribute__((vector_size(4 * sizeof(float))));

// The parameters of a convolution.
struct Convolution {
  const float *weight, *bias;  // (rows, channels * taps); (rows,) or null
  int64_t channels;
  int taps;
  const int64_t *offset;  // of each tap
  bool relu;

  // Rows [first, last) of n pixels. Pixels of x and y lie side by side, their channels `x_pitch`
  // and `y_pitch` apart; y begins with row `first`.
  void run(int64_t first, int64_t last, int64_t n, float *y, int64_t y_pitch, const float *x,
           int64_t x_pitch) const {
    for (int64_t rows; first < last; first += rows) {
      if (first + kRows <= last) {
        rows = kRows;
        run_rows<kRows>(first, n, y, y_pitch, x, x_pitch);
      } else {
        rows = 1;
        run_rows<1>(first, n, y, y_pitch, x, x_pitch);
      }
      y += rows * y_pitch;
    }
  }

 private:
  float bias_of(int64_t row) const { return bias == nullptr ? 0 : bias[row]; }

  template <int kCount>
  void run_rows(int64_t row, int64_t n, float *y, int64_t y_pitch, const float *x,
                int64_t x_pitch) const {
    int64_t i = 0;
    i = tiles<Vec, kCount>(i, row, n, y, y_pitch, x, x_pitch);
    i = tiles<Quarter, kCount>(i, row, n, y, y_pitch, x, x_pitch);
    for (; i < n; ++i) {
      pixel<kCount>(row, y + i, y_pitch, x + i, x_pitch);
    }
  }

  // A single pixel: vectors along the inputs, which are gathered for it.
  template <int kCount>
  void pixel(int64_t row, float *y, int64_t y_pitch, const float *x, int64_t x_pitch) const {
    const int64_t depth = channels * taps;
    float *in = scratch(Slot::kInputs, depth), *next = in;
    for (int64_t c = 0; c < channels; ++c, x += x_pitch) {
      for (int t = 0; t < taps; ++t) {
        *next++ = x[offset[t]];
      }
    }
    const float *w = weight + row * depth;
    Vec sums[kCount] = {};
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) {
      const Vec v = load(in + k);
#pragma GCC unroll 8
      for (int r = 0; r < kCount; ++r) {
        sums[r] += load(w + r * depth + k) * v;
      }
    }
    for (int r = 0; r < kCount; ++r) {
      float sum = bias_of(row + r);
      for (int lane = 0; lane < kLanes; ++lane) {
        sum += sums[r][lane];
      }
      for (int64_t rest = k; rest < depth; ++rest) {
        sum += w[r * depth + rest] * in[rest];
      }
      y[r * y_pitch] = relu ? spnas::relu(sum) : sum;
    }
  }

  // As many tiles of whole vectors V as fit between pixels i and n; returns where they end.
  template <typename V, int kCount>
  int64_t tiles(int64_t i, int64_t row, int64_t n, float *y, int64_t y_pitch, const float *x,
                int64_t x_pitch) const {
    constexpr int64_t kSize = sizeof(V) / sizeof(float);
    static constexpr decltype(&Convolution::tile<V, kCount, 1>) kTiles[] = {
        &Convolution::tile<V, kCount, 1>, &Convolution::tile<V, kCount, 2>,
        &Convolution::tile<V, kCount, kMaxTile>};
    while (n - i >= kSize) {
      const int64_t vectors = std::min<int64_t>(kMaxTile, (n - i) / kSize);
      (this->*kTiles[vectors - 1])(row, y + i, y_pitch, x + i, x_pitch);
      i += vectors * kSize;
    }
    return i;
  }

  template <typename V, int kCount, int kVectors>
  void tile(int64_t row, float *y, int64_t y_pitch, const float *x, int64_t x_pitch) const {
    constexpr int64_t kSize = sizeof(V) / sizeof(float);
    const int64_t depth = channels * taps;
    V sum[kCount][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 3
      for (int u = 0; u < kVectors; ++u) {
        sum[r][u] = V{} + bias_of(row + r);
      }
    }
    const float *w = weight + row * depth;
    for (int64_t c = 0; c < channels; ++c, x += x_pitch) {
      for (int t = 0; t < taps; ++t, ++w) {
        V in[kVectors];
#pragma GCC unroll 3
        for (int u = 0; u < kVectors; ++u) {
          std::memcpy(&in[u], x + offset[t] + u * kSize, sizeof(V));
        }
#pragma GCC unroll 8
        for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 3
          for (int u = 0; u < kVectors; ++u) {
            sum[r][u] += w[r * depth] * in[u];
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 3
      for (int u = 0; u < kVectors; ++u) {
        V v = sum[r][u];
        if (relu) {
          v = spnas::relu(v);
        }
        std::memcpy(y + r * y_pitch + u * kSize, &v, sizeof(V));
      }
    }
  }
};

}  // namespace spnas
