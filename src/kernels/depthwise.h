// Depthwise convolution of one (H, W) plane, kernel k = 3, 5, 7, stride 1 or 2, padding k / 2 on
// all sides.
//
// Planes of these networks are 4 to 112 pixels wide, so vectors along a row would often be half
// empty. Instead a plane is copied with its padding into a scratch buffer of `pitch` floats per
// row, where it is one long line: output pixel (y, x) at y * pitch + x needs tap (ky, kx) at a
// distance that is the same for all pixels,
//
//     out[i] = sum over taps t of weight[t] * in[i + offset[t]],   i = y * pitch + x.
//
// Vectors run along i across row ends; the few results that lie between two rows are dropped. For
// stride 2 the copy separates even and odd rows and columns into four planes ("phases"), in which
// neighbouring outputs need neighbouring inputs again. Both gradients have the same form:
//
//     d weight[t] = sum over i of d out[i] * in[i + offset[t]]
//     d in[i]     = sum over t of weight[t] * d out[i - offset[t]]
//
// with d out zero between the rows; for stride 2 each phase of the input has its own taps.
//
// Scratch buffers hold one plane and stay in the first two cache levels.
#pragma once

#include <cstdint>

#include "vectors.h"

namespace spnas {

// Sums at a time, in registers; several, since each addition waits for the one before it.
constexpr int kMaxVectors = 8;
constexpr int kMaxTaps = 49;  // of a 7x7 kernel

// One block of correlate() below, of kVectors vectors.
template <int kVectors>
inline void correlate_block(float *dst, const float *src, const int64_t *offset,
                            const float *weight, int taps) {
  Vec sum[kVectors] = {};
  for (int t = 0; t < taps; ++t) {
    const float *in = src + offset[t];
    const float w = weight[t];
#pragma GCC unroll 8
    for (int u = 0; u < kVectors; ++u) {
      sum[u] += w * load(in + u * kLanes);
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < kVectors; ++u) {
    store(dst + u * kLanes, sum[u]);
  }
}

// dst[i] = sum of weight[t] * src[i + offset[t]] for i < n. Reads and writes up to kLanes - 1
// floats more.
inline void correlate(float *dst, const float *src, int64_t n, const int64_t *offset,
                      const float *weight, int taps) {
  static constexpr decltype(&correlate_block<1>) kBlocks[] = {
      correlate_block<1>, correlate_block<2>, correlate_block<3>, correlate_block<4>,
      correlate_block<5>, correlate_block<6>, correlate_block<7>, correlate_block<8>};
  int64_t vectors = (n + kLanes - 1) / kLanes;
  // Blocks of about equal size: a short one at the end would take as long as a full one.
  for (int64_t blocks = (vectors + kMaxVectors - 1) / kMaxVectors; blocks > 0; --blocks) {
    const int64_t now = (vectors + blocks - 1) / blocks;
    kBlocks[now - 1](dst, src, offset, weight, taps);
    dst += now * kLanes;
    src += now * kLanes;
    vectors -= now;
  }
}

// sum[t] += dout[i] * src[i + offset[t]] over i < n, lane by lane, for kTaps taps whose sums stay
// in registers. Reads up to kLanes - 1 floats past n, where dout must be zero.
template <int kTaps>
inline void correlate_taps(float *sum, const float *dout, const float *src, int64_t n,
                           const int64_t *offset) {
  Vec acc[kTaps];
  for (int t = 0; t < kTaps; ++t) {
    acc[t] = load(sum + t * kLanes);
  }
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec d = load(dout + i);
#pragma GCC unroll 9
    for (int t = 0; t < kTaps; ++t) {
      acc[t] += d * load(src + i + offset[t]);
    }
  }
  for (int t = 0; t < kTaps; ++t) {
    store(sum + t * kLanes, acc[t]);
  }
}

// Sizes and offsets of a convolution, and the steps of its two directions for one plane.
class Depthwise {
 public:
  const int64_t height, width;          // of the input
  const int64_t out_height, out_width;  // ceil(input / stride)
  const int kernel, stride, pad, taps;
  const int64_t pitch, rows;  // of one phase
  const int64_t count;        // length of the line from the first output to the last

  Depthwise(int64_t height, int64_t width, int kernel, int stride)
      : height(height), width(width), out_height((height - 1) / stride + 1),
        out_width((width - 1) / stride + 1), kernel(kernel), stride(stride), pad(kernel / 2),
        taps(kernel * kernel), pitch(out_width + 2 * pad / stride),
        rows(out_height + 2 * pad / stride), count((out_height - 1) * pitch + out_width) {
    for (int ky = 0; ky < kernel; ++ky) {
      for (int kx = 0; kx < kernel; ++kx) {
        const int phase = ky % stride * stride + kx % stride;
        offset_[ky * kernel + kx] = phase * phase_size() + ky / stride * pitch + kx / stride;
      }
    }
    // Input pixel stride * j + r takes part in output j + (r + pad - k) / stride, for the k that
    // leave no rest.
    for (int ry = 0; ry < stride; ++ry) {
      for (int rx = 0; rx < stride; ++rx) {
        InputPhase &phase = input_phase_[ry * stride + rx];
        for (int ky = (ry + pad) % stride; ky < kernel; ky += stride) {
          for (int kx = (rx + pad) % stride; kx < kernel; kx += stride) {
            const int64_t dy = out_pad() + (ry + pad - ky) / stride,
                          dx = out_pad() + (rx + pad - kx) / stride;
            phase.offset[phase.taps] = dy * pitch + dx;
            phase.tap[phase.taps++] = ky * kernel + kx;
          }
        }
      }
    }
  }

  int64_t in_plane() const { return height * width; }
  int64_t out_plane() const { return out_height * out_width; }

  // Scratch sizes in floats: all phases of the padded input; one line of outputs, padded.
  int64_t input_size() const { return stride * stride * phase_size() + kLanes; }
  int64_t output_size() const { return phase_size() + kLanes; }

  // Where the taps of output 0 lie in the packed input.
  const int64_t *offsets() const { return offset_; }

  // Copies a plane into `phases`, whose borders the caller has set to zero.
  void pack_input(float *phases, const float *x) const {
    for (int64_t y = 0; y < height; ++y, x += width) {
      const int64_t yp = y + pad;
      float *row = phases + yp % stride * stride * phase_size() + yp / stride * pitch;
      if (stride == 1) {
        copy_row(row + pad, x, width);
        continue;
      }
      // Column 0 is padded column `pad`, column 1 the next: one even, one odd.
      float *even = row + pad % 2 * phase_size() + pad / 2;
      float *odd = row + (pad + 1) % 2 * phase_size() + (pad + 1) / 2;
      const int64_t pairs = width / 2;
      for (int64_t j = 0; j < pairs; ++j) {
        even[j] = x[2 * j];
        odd[j] = x[2 * j + 1];
      }
      if (width % 2) {
        even[pairs] = x[width - 1];
      }
    }
  }

  // Copies a plane of output gradients into `line`, whose borders the caller has set to zero.
  void pack_output(float *line, const float *dout) const {
    for (int64_t y = 0; y < out_height; ++y) {
      copy_row(line + (y + out_pad()) * pitch + out_pad(), dout + y * out_width, out_width);
    }
  }

  // y (out_height, out_width) from packed input; `line` is scratch of output_size().
  void forward(float *y, float *line, const float *phases, const float *weight) const {
    correlate(line, phases, count, offset_, weight, taps);
    for (int64_t i = 0; i < out_height; ++i) {
      copy_row(y + i * out_width, line + i * pitch, out_width);
    }
  }

  // Adds a plane's contribution to the sums (taps, kLanes) of the kernel gradient.
  void kernel_gradient(float *sum, const float *line, const float *phases) const {
    const float *dout = line + out_pad() * (pitch + 1);
    if (kernel == 3) {
      correlate_taps<9>(sum, dout, phases, count, offset_);
      return;
    }
    for (int t = 0; t < taps; t += kernel) {
      if (kernel == 5) {
        correlate_taps<5>(sum + t * kLanes, dout, phases, count, offset_ + t);
      } else {
        correlate_taps<7>(sum + t * kLanes, dout, phases, count, offset_ + t);
      }
    }
  }

  // dx (height, width) from packed output gradients; `lines` is scratch of input_size().
  void input_gradient(float *dx, float *lines, const float *line, const float *weight) const {
    for (int p = 0; p < stride * stride; ++p) {
      const InputPhase &phase = input_phase_[p];
      float w[kMaxTaps];
      for (int t = 0; t < phase.taps; ++t) {
        w[t] = weight[phase.tap[t]];
      }
      correlate(lines + p * phase_size(), line, count, phase.offset, w, phase.taps);
    }
    for (int64_t y = 0; y < height; ++y, dx += width) {
      const float *row = lines + y % stride * stride * phase_size() + y / stride * pitch;
      if (stride == 1) {
        copy_row(dx, row, width);
        continue;
      }
      const float *odd = row + phase_size();
      const int64_t pairs = width / 2;
      for (int64_t j = 0; j < pairs; ++j) {
        dx[2 * j] = row[j];
        dx[2 * j + 1] = odd[j];
      }
      if (width % 2) {
        dx[width - 1] = row[pairs];
      }
    }
  }

 private:
  struct InputPhase {
    int taps = 0;
    int tap[kMaxTaps];
    int64_t offset[kMaxTaps];
  };

  // A vector more than its pixels: where the last vector of one phase ends, the next has not begun.
  int64_t phase_size() const { return rows * pitch + kLanes; }
  // Zeros before the first output in a packed line; 2 * pad / stride - out_pad() follow the last.
  int64_t out_pad() const { return stride == 1 ? pad : pad / 2; }

  int64_t offset_[kMaxTaps];
  InputPhase input_phase_[4];
};

}  // namespace spnas
