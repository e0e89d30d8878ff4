// Convolutions of whole tensors (convolution.h), divided into tasks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "call.h"
#include "convolution.h"
#include "depthwise.h"

namespace spnas {

// Pixels of a task: their inputs stay in the first cache levels from one group of output channels
// to the next.
constexpr int64_t kPartPixels = 192;

// Floats that are kept between the two halves of a job, unless one sample needs more: about a
// second-level cache.
constexpr int64_t kKept = 1 << 18;

constexpr int64_t kPointwise[] = {0};  // offset of the only tap

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

// Calls before(i) for all i < count and then, when all have ended, after(i) for all i < next.
//
// As one job, since waking the threads a second time would take as long as the work of a small
// layer. Tasks begin in order: when the first of the second kind does, each of the first kind has a
// thread that works on it.
template <typename Before, typename After>
Status parallel_then(int64_t count, const Before &before, int64_t next, const After &after) {
  std::atomic<int64_t> open{count};
  return parallel(count + next, 1, [&](int64_t i, int64_t) {
    if (i < count) {
      struct Closing {
        std::atomic<int64_t> &open;
        ~Closing() { open.fetch_sub(1, std::memory_order_release); }  // also if before() throws
      } closing{open};
      before(i);
      return;
    }
    while (open.load(std::memory_order_acquire) > 0) {
      std::this_thread::yield();
    }
    after(i - count);
  });
}

// Part of y (samples, rows, pixels) from x (samples, channels, pixels); `residual` is null or of
// y's shape.
inline void pointwise(const Convolution &conv, const Parts &parts, const Part &part, float *y,
                      const float *x, const float *residual) {
  const int64_t pixels = parts.pixels,
                at = (part.sample * parts.rows + part.first) * pixels + part.begin;
  conv.run(part.first, part.last, part.end - part.begin, y + at, pixels,
           x + part.sample * conv.channels * pixels + part.begin, pixels,
           residual ? residual + at : nullptr);
}

// y (samples, rows, out_height, out_width) from x (samples, channels, height, width), padded as
// `layout` has it.
//
// Samples are taken a few at a time: all their planes are packed, and then convolved.
inline Status convolve(const Convolution &conv, const Depthwise &layout, int64_t samples,
                       int64_t rows, float *y, const float *x) {
  const int64_t in_plane = layout.height * layout.width,
                out_plane = layout.out_height * layout.out_width;
  const int64_t size = layout.input_size(), pitch = layout.pitch, width = layout.out_width;
  const int64_t lines = std::max<int64_t>(1, kPartPixels / pitch);
  const int64_t together = std::max<int64_t>(1, std::min(samples, kKept / (conv.channels * size)));
  float *packed = zeroed(3, together * conv.channels * size);
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
      float *line = scratch(0, kRows * count);
      conv.run(part.first, part.last, count, line, count, input, size, nullptr);
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
