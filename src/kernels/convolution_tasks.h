// Convolutions of whole tensors (convolution.h), divided into tasks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "convolution.h"
#include "depthwise.h"
#include "scratch.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

// Pixels of a task: their inputs stay in the first cache levels from one group of output channels
// to the next.
constexpr int64_t kPartPixels = 192;

// Floats that are kept between the two halves of a job, unless one sample needs more: about a
// second-level cache.
constexpr int64_t kKept = 1 << 18;

// A 1x1 convolution has one tap, at no distance.
constexpr int kPointwiseTaps = 1;
constexpr int64_t kPointwiseOffset[kPointwiseTaps] = {0};

inline Convolution make_pointwise(const float *weight, const float *bias, int64_t channels,
                                  bool relu) {
  return {weight, bias, channels, kPointwiseTaps, kPointwiseOffset, relu};
}

// With planes packed as `layout` has it.
inline Convolution make_convolution(const float *weight, const float *bias, int64_t channels,
                                    const Depthwise &layout, bool relu) {
  return {weight, bias, channels, layout.taps, layout.offsets(), relu};
}

// Rows [first, last) of output channels and pixels [begin, end) of a sample.
struct Part {
  int64_t sample, first, last, begin, end;
};

// The parts of a result that are tasks, neighbouring groups of output channels one after the other.
struct Parts {
  int64_t samples, rows, pixels, part_pixels;

  int64_t groups() const { return divide_up(rows, kRows); }
  int64_t pieces() const { return divide_up(pixels, part_pixels); }
  int64_t count() const { return samples * pieces() * groups(); }

  Part operator[](int64_t i) const {
    const int64_t sample = i / groups() / pieces();
    const int64_t first = i % groups() * kRows, begin = i / groups() % pieces() * part_pixels;
    return {sample, first, std::min(rows, first + kRows), begin,
            std::min(pixels, begin + part_pixels)};
  }
};

// Part of y (samples, rows, pixels) from x (samples, channels, pixels).
inline void pointwise(const Convolution &conv, const Parts &parts, const Part &part, float *y,
                      const float *x) {
  const int64_t pixels = parts.pixels;
  const int64_t at = (part.sample * parts.rows + part.first) * pixels + part.begin;
  conv.run(part.first, part.last, part.end - part.begin, y + at, pixels,
           x + part.sample * conv.channels * pixels + part.begin, pixels);
}

// y (samples, rows, out_height, out_width) from x (samples, channels, height, width), padded as
// `layout` has it.
//
// Samples are taken a few at a time: all their planes are packed, and then convolved.
inline Status convolve(const Convolution &conv, const Depthwise &layout, int64_t samples,
                       int64_t rows, float *y, const float *x) {
  const int64_t in_plane = layout.in_plane(), out_plane = layout.out_plane();
  const int64_t size = layout.input_size(), pitch = layout.pitch, width = layout.out_width;
  const int64_t lines = std::max<int64_t>(1, kPartPixels / pitch);
  const int64_t together = std::max<int64_t>(1, std::min(samples, kKept / (conv.channels * size)));
  float *packed = zeroed(Slot::kJob, together * conv.channels * size);
  for (int64_t n = 0; n < samples; n += together) {
    const int64_t now = std::min(together, samples - n);
    const Parts parts{now, rows, layout.out_height, lines};
    const auto pack = [&](int64_t i) {
      layout.pack_input(packed + i * size, x + (n * conv.channels + i) * in_plane);
    };
    const auto sum = [&](int64_t i) {
      const Part part = parts[i];
      const int64_t count = (part.end - part.begin - 1) * pitch + width;
      const float *input = packed + part.sample * conv.channels * size + part.begin * pitch;
      float *line = scratch(Slot::kLine, kRows * count);
      conv.run(part.first, part.last, count, line, count, input, size);
      for (int64_t row = part.first; row < part.last; ++row, line += count) {
        float *plane = y + ((n + part.sample) * rows + row) * out_plane;
        for (int64_t h = part.begin; h < part.end; ++h) {
          copy_row(plane + h * width, line + (h - part.begin) * pitch, width);
        }
      }
    };
    if (Status status = parallel_then(now * conv.channels, pack, parts.count(), sum)) {
      return status;
    }
  }
  return kOk;
}

}  // namespace spnas
