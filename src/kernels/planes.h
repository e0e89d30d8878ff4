// Depthwise convolution of planes of 16 channels, kernel side 3, 5 or 7, stride 1 or 2, padding
// side / 2 on all sides.
//
// A plane is (rows, pitch, 16) with zeros around its pixels. Vectors run along channels, and a tile
// of neighbouring outputs is summed in registers: each input that is read serves all of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace spnas {

constexpr int kMaxOutputs = 8;  // of a tile

// sum[o] += sum over kx < kX and ky < rows of weight[ky * kX + kx] * in[ky][kStride * o + kx]
template <int kX, int kStride, int kN>
inline void correlate_tile(Vec (&sum)[kN], const float *in, int64_t pitch, const float *weight,
                           int rows) {
  for (int ky = 0; ky < rows; ++ky, in += pitch, weight += kX * kGroup) {
    Vec w[kX];
#pragma GCC unroll 8
    for (int kx = 0; kx < kX; ++kx) {
      w[kx] = load(weight + kx * kGroup);
    }
#pragma GCC unroll 32
    for (int i = 0; i < kStride * (kN - 1) + kX; ++i) {
      const Vec x = load(in + i * kGroup);
#pragma GCC unroll 8
      for (int kx = 0; kx < kX; ++kx) {
        const int o = (i - kx) / kStride;
        if (i >= kx && (i - kx) % kStride == 0 && o < kN) {
          sum[o] += w[kx] * x;
        }
      }
    }
  }
}

template <int kX, int kStride, int kN, typename Out>
inline void correlate_tile_to(int64_t first, const float *in, int64_t pitch, const float *weight,
                              int rows, const Out &out) {
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    Vec sum[kN] = {};
    correlate_tile<kX, kStride, kN>(sum, in + v * kLanes, pitch, weight + v * kLanes, rows);
#pragma GCC unroll 8
    for (int o = 0; o < kN; ++o) {
      out(first + o, v, sum[o]);
    }
  }
}

// The same for as many outputs as `count` says, up to kN.
template <int kX, int kStride, int kN, typename Out>
inline void correlate_outputs(int64_t count, int64_t first, const float *in, int64_t pitch,
                              const float *weight, int rows, const Out &out) {
  if (count == kN) {
    correlate_tile_to<kX, kStride, kN>(first, in, pitch, weight, rows, out);
  } else if constexpr (kN > 1) {
    correlate_outputs<kX, kStride, kN - 1>(count, first, in, pitch, weight, rows, out);
  }
}

// out(o, v, vector v of output o) for the `count` outputs of one row.
template <int kX, int kStride, typename Out>
inline void correlate_row(int64_t count, const float *in, int64_t pitch, const float *weight,
                          int rows, const Out &out) {
  // Tiles of about equal size: a short one at the end would take as long as a full one.
  int64_t first = 0;
  for (int64_t tiles = (count + kMaxOutputs - 1) / kMaxOutputs; tiles > 0; --tiles) {
    const int64_t now = (count - first + tiles - 1) / tiles;
    correlate_outputs<kX, kStride, kMaxOutputs>(now, first, in + first * kStride * kGroup, pitch,
                                                weight, rows, out);
    first += now;
  }
}

// Outputs whose gradients kernel_tile() holds in registers, besides its sums.
constexpr int kHeld = 4;

// sum[r][kx] += dout[o] * in[r][kStride * o + kx] for kN neighbouring outputs o: an input that is
// read serves all of them.
template <int kR, int kX, int kStride, int kN>
inline void add_outputs(Vec (&sum)[kR][kX], const float *dout, const float *in, int64_t pitch) {
  Vec d[kN];
#pragma GCC unroll 4
  for (int o = 0; o < kN; ++o) {
    d[o] = load(dout + o * kGroup);
  }
#pragma GCC unroll 3
  for (int r = 0; r < kR; ++r, in += pitch) {
#pragma GCC unroll 32
    for (int i = 0; i < kStride * (kN - 1) + kX; ++i) {
      const Vec x = load(in + i * kGroup);
#pragma GCC unroll 8
      for (int kx = 0; kx < kX; ++kx) {
        const int o = (i - kx) / kStride;
        if (i >= kx && (i - kx) % kStride == 0 && o < kN) {
          sum[r][kx] += d[o] * x;
        }
      }
    }
  }
}

// sums[r * kX + kx] += sum over rows y < count_y and outputs x < count_x of
// dout[y][x] * in[kStride * y + r][kStride * x + kx], for r < kR and kx < kX.
template <int kR, int kX, int kStride>
inline void kernel_tile(float *sums, const float *dout, int64_t dout_pitch, const float *in,
                        int64_t pitch, int64_t count_y, int64_t count_x) {
  for (int v = 0; v < kVecs; ++v) {
    Vec sum[kR][kX] = {};
    for (int64_t y = 0; y < count_y; ++y) {
      const float *d = dout + y * dout_pitch + v * kLanes;
      const float *x = in + y * kStride * pitch + v * kLanes;
      int64_t i = 0;
      for (; i + kHeld <= count_x; i += kHeld) {
        add_outputs<kR, kX, kStride, kHeld>(sum, d + i * kGroup, x + i * kStride * kGroup, pitch);
      }
      for (; i < count_x; ++i) {
        add_outputs<kR, kX, kStride, 1>(sum, d + i * kGroup, x + i * kStride * kGroup, pitch);
      }
    }
    for (int r = 0; r < kR; ++r) {
      for (int kx = 0; kx < kX; ++kx) {
        float *at = sums + (r * kX + kx) * kGroup + v * kLanes;
        store(at, load(at) + sum[r][kx]);
      }
    }
  }
}

// Sizes of a convolution, and the steps of its two directions for one plane.
class Planes {
 public:
  const int64_t height, width, out_height, out_width;  // out: ceil(in / stride)
  const int side, stride, pad, taps;
  const int64_t pitch, size;          // floats of a row and of the whole, padded
  const int64_t out_pitch, out_size;  // the same of gradients of the output

  Planes(int64_t height, int64_t width, int side, int stride)
      : height(height), width(width), out_height((height - 1) / stride + 1),
        out_width((width - 1) / stride + 1), side(side), stride(stride), pad(side / 2),
        taps(side * side), pitch((width + 2 * pad) * kGroup), size((height + 2 * pad) * pitch),
        out_pitch((out_width + 2 * pad) * kGroup), out_size((out_height + 2 * pad) * out_pitch) {}

  int64_t pixels() const { return height * width; }
  int64_t out_pixels() const { return out_height * out_width; }

  // Where the pixel (y, x) lies in a padded plane.
  int64_t at(int64_t y, int64_t x) const { return (y + pad) * pitch + (x + pad) * kGroup; }
  int64_t out_at(int64_t y, int64_t x) const { return (y + pad) * out_pitch + (x + pad) * kGroup; }

  // Sets to zero what lies left and right of the pixels, and whole rows where is_pixels(y) is false
  // for row y of -pad, ..., height + pad - 1.
  template <typename IsPixels>
  void clear_border(float *plane, const IsPixels &is_pixels) const {
    clear(plane, height, pitch, is_pixels);
  }
  template <typename IsPixels>
  void clear_out_border(float *plane, const IsPixels &is_pixels) const {
    clear(plane, out_height, out_pitch, is_pixels);
  }

  // out(pixel, v, vector) for all outputs of a plane; weight (taps, 16).
  template <typename Out>
  void forward(const float *plane, const float *weight, const Out &out) const {
    return stride == 1 ? forward_with<1>(plane, weight, out) : forward_with<2>(plane, weight, out);
  }

  // sums (taps, 16) += the kernel's gradient from a padded plane of output gradients.
  void kernel_gradient(float *sums, const float *dout, const float *plane) const {
    // Sums run in float over a few hundred pixels, and in the caller's from there on.
    const int64_t lines = std::max<int64_t>(1, 256 / out_width);
    for (int64_t y = 0; y < out_height; y += lines) {
      const int64_t now = std::min(lines, out_height - y);
      const float *d = dout + out_at(y, 0), *in = plane + y * stride * pitch;
      if (stride == 1) {
        kernel_rows<1>(sums, d, in, now);
      } else {
        kernel_rows<2>(sums, d, in, now);
      }
    }
  }

  // The weights (taps, 16) in the order in which input_gradient() reads them.
  void flip(float *flipped, const float *weight) const {
    for_phases([&](const Phase &phase) {
      for (int y = phase.rows - 1; y >= 0; --y) {
        for (int x = phase.columns - 1; x >= 0; --x, flipped += kGroup) {
          const int tap = (phase.first_y + y * stride) * side + phase.first_x + x * stride;
          std::memcpy(flipped, weight + tap * kGroup, kGroup * sizeof(float));
        }
      }
    });
  }

  // out(y, x, v, vector) for all inputs of a plane, from a padded plane of output gradients.
  template <typename Out>
  void input_gradient(const float *dout, const float *flipped, const Out &out) const {
    for_phases([&](const Phase &phase) {
      const int64_t columns = divide(width - phase.x), rows = divide(height - phase.y);
      for (int64_t y = 0; y < rows; ++y) {
        // The output that the last tap of input (y, 0) of this phase takes part in.
        const float *in =
            dout + out_at(y + phase.base_y - phase.rows + 1, phase.base_x - phase.columns + 1);
        const auto to = [&](int64_t x, int v, Vec sum) {
          out(y * stride + phase.y, x * stride + phase.x, v, sum);
        };
        switch (phase.columns) {
          case 1:
            correlate_row<1, 1>(columns, in, out_pitch, flipped, phase.rows, to);
            break;
          case 2:
            correlate_row<2, 1>(columns, in, out_pitch, flipped, phase.rows, to);
            break;
          case 3:
            correlate_row<3, 1>(columns, in, out_pitch, flipped, phase.rows, to);
            break;
          case 4:
            correlate_row<4, 1>(columns, in, out_pitch, flipped, phase.rows, to);
            break;
          case 5:
            correlate_row<5, 1>(columns, in, out_pitch, flipped, phase.rows, to);
            break;
          default:
            correlate_row<7, 1>(columns, in, out_pitch, flipped, phase.rows, to);
        }
      }
      flipped += phase.rows * phase.columns * kGroup;
    });
  }

 private:
  // Inputs (stride * j + y, stride * i + x), which the same taps reach: first, first + stride, ...
  // Tap `first` leads to output j + base, each later one to the output before.
  struct Phase {
    int y, x, first_y, first_x, rows, columns, base_y, base_x;
  };

  int64_t divide(int64_t count) const { return (count + stride - 1) / stride; }

  template <typename Body>
  void for_phases(const Body &body) const {
    for (int y = 0; y < stride; ++y) {
      for (int x = 0; x < stride; ++x) {
        const int first_y = (y + pad) % stride, first_x = (x + pad) % stride;
        body(Phase{y, x, first_y, first_x, (side - first_y + stride - 1) / stride,
                   (side - first_x + stride - 1) / stride, (y + pad - first_y) / stride,
                   (x + pad - first_x) / stride});
      }
    }
  }

  template <typename IsPixels>
  void clear(float *plane, int64_t rows, int64_t pitch, const IsPixels &is_pixels) const {
    const int64_t edge = pad * kGroup;
    for (int64_t y = -pad; y < rows + pad; ++y, plane += pitch) {
      if (is_pixels(y)) {
        std::memset(plane, 0, edge * sizeof(float));
        std::memset(plane + pitch - edge, 0, edge * sizeof(float));
      } else {
        std::memset(plane, 0, pitch * sizeof(float));
      }
    }
  }

  template <int kStride, typename Out>
  void forward_with(const float *plane, const float *weight, const Out &out) const {
    switch (side) {
      case 3:
        return forward_with<3, kStride>(plane, weight, out);
      case 5:
        return forward_with<5, kStride>(plane, weight, out);
      default:
        return forward_with<7, kStride>(plane, weight, out);
    }
  }

  template <int kSide, int kStride, typename Out>
  void forward_with(const float *plane, const float *weight, const Out &out) const {
    for (int64_t y = 0; y < out_height; ++y) {
      correlate_row<kSide, kStride>(
          out_width, plane + y * kStride * pitch, pitch, weight, kSide,
          [&](int64_t x, int v, Vec sum) { out(y * out_width + x, v, sum); });
    }
  }

  // As many rows of taps at a time as leave their sums in registers.
  template <int kStride>
  void kernel_rows(float *sums, const float *d, const float *in, int64_t lines) const {
    if (side == 3) {
      kernel_tile<3, 3, kStride>(sums, d, out_pitch, in, pitch, lines, out_width);
      return;
    }
    if (side == 5) {
      for (int r = 0; r < 4; r += 2) {
        kernel_tile<2, 5, kStride>(sums + r * side * kGroup, d, out_pitch, in + r * pitch, pitch,
                                   lines, out_width);
      }
      kernel_tile<1, 5, kStride>(sums + 4 * side * kGroup, d, out_pitch, in + 4 * pitch, pitch,
                                 lines, out_width);
      return;
    }
    for (int r = 0; r < side; ++r) {
      kernel_tile<1, 7, kStride>(sums + r * side * kGroup, d, out_pitch, in + r * pitch, pitch,
                                 lines, out_width);
    }
  }
};

}  // namespace spnas
