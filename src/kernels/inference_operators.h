// Layers of the folded network as operators: convolutions with bias, followed by ReLU. Without gradients.
//
// Weights are (O, C, k, k) or, depthwise, (C, 1, k, k), biases (O,).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <thread>

#include "call.h"
#include "convolution.h"
#include "depthwise.h"

namespace spnas {

// Pixels of a task: their inputs stay in the first cache levels from one group of output channels to the next.
constexpr int64_t kPartPixels = 192;

// Floats that a block keeps between its two halves, unless one sample needs more: about a second-level cache.
constexpr int64_t kKept = 1 << 18;

constexpr int64_t kPointwise[] = {0};  // offset of the only tap

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether parameters i and i + 1 are a weight of this shape and its bias.
inline bool is_convolution(const Call &call, int i, std::initializer_list<int64_t> shape) {
  return call.is_shape(i, shape) && *shape.begin() > 0 && call.is_shape(i + 1, {*shape.begin()});
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
    return {sample, first, std::min(rows, first + kRows), begin, std::min(pixels, begin + part_pixels)};
  }
};

// Calls before(i) for all i < count and then, when all have ended, after(i) for all i < next.
//
// As one job, since waking the threads a second time would take as long as the work of a small layer. Tasks begin in
// order: when the first of the second kind does, each of the first kind has a thread that works on it.
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

// Part of y (samples, rows, pixels) from x (samples, channels, pixels); `residual` is null or of y's shape.
inline void pointwise(const Convolution &conv, const Parts &parts, const Part &part, float *y, const float *x,
                      const float *residual) {
  const int64_t pixels = parts.pixels, at = (part.sample * parts.rows + part.first) * pixels + part.begin;
  conv.run(part.first, part.last, part.end - part.begin, y + at, pixels,
           x + part.sample * conv.channels * pixels + part.begin, pixels, residual ? residual + at : nullptr);
}

// x, weight, bias -> y = max(0, 1x1 convolution + bias)
inline Status pointwise_relu(const Call &call) {
  if (Status status = call.check(4)) {
    return status;
  }
  if (call.ndims[0] != 4 || call.ndims[1] != 4 || !Shape(call, 0).valid()) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const int64_t rows = call.shapes[1][0];
  if (!is_convolution(call, 1, {rows, s.c, 1, 1}) || !call.is_shape(3, {s.n, rows, s.h, s.w})) {
    return kBadShape;
  }
  const Convolution conv{call.data(1), call.data(2), s.c, 1, kPointwise, true};
  const Parts parts{s.n, rows, s.plane(), kPartPixels};
  return parallel(parts.count(), 1, [&](int64_t i, int64_t) {
    pointwise(conv, parts, parts[i], call.data(3), call.data(0), nullptr);
  });
}

// x, weight, bias -> y = max(0, convolution + bias), padded by k / 2 on all sides
inline Status conv_relu(const Call &call, int stride) {
  if (Status status = call.check(4)) {
    return status;
  }
  if (call.ndims[0] != 4 || call.ndims[1] != 4 || !Shape(call, 0).valid()) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const int64_t rows = call.shapes[1][0], k = call.shapes[1][2];
  if ((k != 3 && k != 5 && k != 7) || !is_convolution(call, 1, {rows, s.c, k, k}) ||
      !call.is_shape(3, {s.n, rows, (s.h - 1) / stride + 1, (s.w - 1) / stride + 1})) {
    return kBadShape;
  }
  const Depthwise layout(s.h, s.w, static_cast<int>(k), stride);
  const Convolution conv{call.data(1), call.data(2), s.c, layout.taps, layout.offsets(), true};
  const int64_t in_plane = s.plane(), size = layout.input_size(), width = layout.out_width, pitch = layout.pitch;
  const int64_t lines = std::max<int64_t>(1, kPartPixels / pitch);
  const Parts parts{1, rows, layout.out_height, lines};
  float *packed = zeroed(3, s.c * size);
  for (int64_t n = 0; n < s.n; ++n) {
    const float *x = call.data(0) + n * s.c * in_plane;
    float *y = call.data(3) + n * rows * layout.out_height * width;
    const auto pack = [&](int64_t c) { layout.pack_input(packed + c * size, x + c * in_plane); };
    const auto convolve = [&](int64_t i) {
      const Part part = parts[i];
      const int64_t count = (part.end - part.begin - 1) * pitch + width;
      float *line = scratch(0, kRows * count);
      conv.run(part.first, part.last, count, line, count, packed + part.begin * pitch, size, nullptr);
      for (int64_t row = part.first; row < part.last; ++row, line += count) {
        for (int64_t h = part.begin; h < part.end; ++h) {
          copy_row(y + (row * layout.out_height + h) * width, line + (h - part.begin) * pitch, width);
        }
      }
    };
    if (Status status = parallel_then(s.c, pack, parts.count(), convolve)) {
      return status;
    }
  }
  return kOk;
}

// x, [expansion,] depthwise convolution, projection -> y; each with weight and bias, all but the last with ReLU
//
// Samples are taken a few at a time. In their first half a task takes a few channels through expansion and depthwise
// convolution, so that what lies between stays in cache; the second half is the projection.
inline Status mbconv(const Call &call, int stride, bool residual) {
  const int depthwise = call.count == 8 ? 3 : 1, project = depthwise + 2, y = project + 2;
  if (Status status = call.check(y + 1)) {
    return status;
  }
  if (call.ndims[0] != 4 || call.ndims[depthwise] != 4 || call.ndims[project] != 4 || !Shape(call, 0).valid()) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const bool expands = depthwise > 1;
  const int64_t mid = call.shapes[depthwise][0], k = call.shapes[depthwise][2], rows = call.shapes[project][0];
  if ((k != 3 && k != 5 && k != 7) || !is_convolution(call, depthwise, {mid, 1, k, k}) ||
      !is_convolution(call, project, {rows, mid, 1, 1}) ||
      (expands ? !is_convolution(call, 1, {mid, s.c, 1, 1}) : mid != s.c) ||
      !call.is_shape(y, {s.n, rows, (s.h - 1) / stride + 1, (s.w - 1) / stride + 1}) ||
      (residual && !same_shape(call, 0, y))) {
    return kBadShape;
  }
  const Depthwise conv(s.h, s.w, static_cast<int>(k), stride);
  const Convolution expansion{call.data(1), call.data(2), s.c, 1, kPointwise, true};
  const Convolution projection{call.data(project), call.data(project + 1), mid, 1, kPointwise, false};
  const float *weight = call.data(depthwise), *bias = call.data(depthwise + 1);
  const int64_t in_plane = s.plane(), out_plane = conv.out_height * conv.out_width;
  const int64_t together = std::max<int64_t>(1, std::min(s.n, kKept / (mid * out_plane)));
  float *kept = scratch(3, together * mid * out_plane);
  for (int64_t n = 0; n < s.n; n += together) {
    const int64_t samples = std::min(together, s.n - n);
    const float *x = call.data(0) + n * s.c * in_plane;
    const Parts groups{samples, mid, 1, 1}, parts{samples, rows, out_plane, kPartPixels};
    const auto expand = [&](int64_t i) {
      const Part part = groups[i];
      float *phases = zeroed(0, conv.input_size()), *line = scratch(1, conv.output_size());
      const float *input = x + part.sample * s.c * in_plane;
      const float *plane = input + part.first * in_plane;
      if (expands) {
        float *expanded = scratch(2, kRows * in_plane);
        expansion.run(part.first, part.last, in_plane, expanded, in_plane, input, in_plane, nullptr);
        plane = expanded;
      }
      for (int64_t c = part.first; c < part.last; ++c, plane += in_plane) {
        float *out = kept + (part.sample * mid + c) * out_plane;
        conv.pack_input(phases, plane);
        conv.forward(out, line, phases, weight + c * conv.taps);
        add_bias_relu(out, out_plane, bias[c]);
      }
    };
    const auto reduce = [&](int64_t i) {
      pointwise(projection, parts, parts[i], call.data(y) + n * rows * out_plane, kept, residual ? x : nullptr);
    };
    if (Status status = parallel_then(groups.count(), expand, parts.count(), reduce)) {
      return status;
    }
  }
  return kOk;
}

}  // namespace spnas
