// Layers of the folded network as operators: convolutions with bias, followed by ReLU. Without
// gradients.
//
// Weights are (O, C, k, k) or, depthwise, (C, 1, k, k), biases (O,).
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "call.h"
#include "convolution.h"
#include "convolution_tasks.h"
#include "depthwise.h"

namespace spnas {

// Whether parameters i and i + 1 are a weight of this shape and its bias.
inline bool is_convolution(const Call &call, int i, std::initializer_list<int64_t> shape) {
  return call.is_shape(i, shape) && *shape.begin() > 0 && call.is_shape(i + 1, {*shape.begin()});
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
  if (!is_convolution(call, 1, {rows, s.c, 1, 1}) || !is_output(call, 3, s, rows, 1)) {
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
  if (!is_kernel(k) || !is_convolution(call, 1, {rows, s.c, k, k}) ||
      !is_output(call, 3, s, rows, stride)) {
    return kBadShape;
  }
  const Depthwise layout(s.h, s.w, static_cast<int>(k), stride);
  const Convolution conv{call.data(1), call.data(2), s.c, layout.taps, layout.offsets(), true};
  return convolve(conv, layout, s.n, rows, call.data(3), call.data(0));
}

// x, [expansion,] depthwise convolution, projection -> y; each with weight and bias, all but the
// last with ReLU
//
// Samples are taken a few at a time. In their first half a task takes a few channels through
// expansion and depthwise convolution, so that what lies between stays in cache; the second half is
// the projection.
inline Status mbconv(const Call &call, int stride, bool residual) {
  const int depthwise = call.count == 8 ? 3 : 1, project = depthwise + 2, y = project + 2;
  if (Status status = call.check(y + 1)) {
    return status;
  }
  if (call.ndims[0] != 4 || call.ndims[depthwise] != 4 || call.ndims[project] != 4 ||
      !Shape(call, 0).valid()) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const bool expands = depthwise > 1;
  const int64_t mid = call.shapes[depthwise][0], k = call.shapes[depthwise][2],
                rows = call.shapes[project][0];
  if (!is_kernel(k) || !is_convolution(call, depthwise, {mid, 1, k, k}) ||
      !is_convolution(call, project, {rows, mid, 1, 1}) ||
      (expands ? !is_convolution(call, 1, {mid, s.c, 1, 1}) : mid != s.c) ||
      !is_output(call, y, s, rows, stride) || (residual && !same_shape(call, 0, y))) {
    return kBadShape;
  }
  const Depthwise conv(s.h, s.w, static_cast<int>(k), stride);
  const Convolution expansion{call.data(1), call.data(2), s.c, 1, kPointwise, true};
  const Convolution projection{
      call.data(project), call.data(project + 1), mid, 1, kPointwise, false};
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
        expansion.run(part.first, part.last, in_plane, expanded, in_plane, input, in_plane,
                      nullptr);
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
      pointwise(projection, parts, parts[i], call.data(y) + n * rows * out_plane, kept,
                residual ? x : nullptr);
    };
    if (Status status = parallel_then(groups.count(), expand, parts.count(), reduce)) {
      return status;
    }
  }
  return kOk;
}

}  // namespace spnas
