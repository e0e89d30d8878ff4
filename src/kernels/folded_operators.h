// Layers of the folded network as operators: convolutions with bias, followed by ReLU, and whole
// MBConv blocks of them. Without gradients.
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
#include "scratch.h"
#include "tasks.h"

namespace spnas {

// Parameters of a convolution: a weight and, behind it, its bias.
constexpr int kBiasOffset = 1, kWeightAndBias = 2;

// Whether parameter i is a weight of this shape, and the next one its bias.
inline bool is_convolution(const Call &call, int i, std::initializer_list<int64_t> shape) {
  return call.is_shape(i, shape) && *shape.begin() > 0 &&
         call.is_shape(i + kBiasOffset, {*shape.begin()});
}

// y = max(0, 1x1 convolution of x + bias)
inline Status pointwise_relu(const Call &call) {
  enum { kX, kWeight, kY = kWeight + kWeightAndBias, kCount };
  if (Status status = call.check(kCount)) {
    return status;
  }
  if (call.ndims[kX] != 4 || call.ndims[kWeight] != 4 || !Shape(call, kX).valid()) {
    return kBadShape;
  }
  const Shape s(call, kX);
  const int64_t rows = Shape(call, kWeight).n;
  if (!is_convolution(call, kWeight, {rows, s.c, 1, 1}) || !is_output(call, kY, s, rows, 1)) {
    return kBadShape;
  }
  const Convolution conv =
      make_pointwise(call.data(kWeight), call.data(kWeight + kBiasOffset), s.c, /*relu=*/true);
  const Parts parts{s.n, rows, s.plane(), kPartPixels};
  return parallel(parts.count(), 1, [&](int64_t i, int64_t) {
    pointwise(conv, parts, parts[i], call.data(kY), call.data(kX), /*residual=*/nullptr);
  });
}

// y = max(0, convolution of x + bias), padded by k / 2 on all sides
inline Status conv_relu(const Call &call, int stride) {
  enum { kX, kWeight, kY = kWeight + kWeightAndBias, kCount };
  if (Status status = call.check(kCount)) {
    return status;
  }
  if (call.ndims[kX] != 4 || call.ndims[kWeight] != 4 || !Shape(call, kX).valid()) {
    return kBadShape;
  }
  const Shape s(call, kX);
  const int64_t rows = Shape(call, kWeight).n, k = Shape(call, kWeight).h;
  if (!is_kernel(k) || !is_convolution(call, kWeight, {rows, s.c, k, k}) ||
      !is_output(call, kY, s, rows, stride)) {
    return kBadShape;
  }
  const Depthwise layout(s.h, s.w, static_cast<int>(k), stride);
  const Convolution conv = make_convolution(call.data(kWeight), call.data(kWeight + kBiasOffset),
                                            s.c, layout, /*relu=*/true);
  return convolve(conv, layout, s.n, rows, call.data(kY), call.data(kX));
}

// The places of an MBConv block's parameters: x, then the convolutions, each with weight and bias,
// then y. A block without expansion leaves out the first convolution.
struct MBConvPlaces {
  enum {
    kX,
    kExpand,
    kDepthwise = kExpand + kWeightAndBias,
    kProject = kDepthwise + kWeightAndBias,
    kY = kProject + kWeightAndBias,
    kCount
  };
  const bool expands;
  const int depthwise, project, y, count;

  explicit MBConvPlaces(const Call &call) : MBConvPlaces(call.count == kCount) {}

 private:
  explicit MBConvPlaces(bool expands)
      : expands(expands), depthwise(expands ? kDepthwise : kExpand),
        project(depthwise + kWeightAndBias), y(project + kWeightAndBias), count(y + 1) {}
};

inline Status check_mbconv(const Call &call, const MBConvPlaces &at, int stride, bool residual) {
  if (Status status = call.check(at.count)) {
    return status;
  }
  if (call.ndims[at.kX] != 4 || call.ndims[at.depthwise] != 4 || call.ndims[at.project] != 4 ||
      !Shape(call, at.kX).valid()) {
    return kBadShape;
  }
  const Shape s(call, at.kX);
  const int64_t mid = Shape(call, at.depthwise).n, k = Shape(call, at.depthwise).h;
  const int64_t rows = Shape(call, at.project).n;
  const bool fits = is_kernel(k) && is_convolution(call, at.depthwise, {mid, 1, k, k}) &&
                    is_convolution(call, at.project, {rows, mid, 1, 1}) &&
                    is_output(call, at.y, s, rows, stride);
  const bool enters = at.expands ? is_convolution(call, at.kExpand, {mid, s.c, 1, 1}) : mid == s.c;
  return fits && enters && (!residual || same_shape(call, at.kX, at.y)) ? kOk : kBadShape;
}

// x, [expansion,] depthwise convolution, projection -> y, to which `residual` adds x; ReLU follows
// all but the last.
//
// Samples are taken a few at a time. In the first half of the job a task takes a few channels
// through expansion and depthwise convolution, so that the result of the one is still in cache for
// the other; the second half is the projection.
inline Status mbconv(const Call &call, int stride, bool residual) {
  const MBConvPlaces at(call);
  if (Status status = check_mbconv(call, at, stride, residual)) {
    return status;
  }
  const Shape s(call, at.kX);
  const int64_t mid = Shape(call, at.depthwise).n, rows = Shape(call, at.project).n;
  const Depthwise conv(s.h, s.w, static_cast<int>(Shape(call, at.depthwise).h), stride);
  const float *weight = call.data(at.depthwise), *bias = call.data(at.depthwise + kBiasOffset);
  const Convolution expansion =  // used if the block has one
      make_pointwise(call.data(at.kExpand), call.data(at.kExpand + kBiasOffset), s.c, true);
  const Convolution projection =
      make_pointwise(call.data(at.project), call.data(at.project + kBiasOffset), mid, false);
  const int64_t in_plane = conv.in_plane(), out_plane = conv.out_plane();
  const int64_t together = std::max<int64_t>(1, std::min(s.n, kKept / (mid * out_plane)));
  float *kept = scratch(Slot::kJob, together * mid * out_plane);
  for (int64_t n = 0; n < s.n; n += together) {
    const int64_t samples = std::min(together, s.n - n);
    const float *x = call.data(at.kX) + n * s.c * in_plane;
    float *y = call.data(at.y) + n * rows * out_plane;
    const Parts groups{samples, mid, 1, 1}, parts{samples, rows, out_plane, kPartPixels};
    const auto expand = [&](int64_t i) {
      const Part part = groups[i];
      float *phases = zeroed(Slot::kPhases, conv.input_size());
      float *line = scratch(Slot::kLine, conv.output_size());
      const float *input = x + part.sample * s.c * in_plane;
      const float *plane = input + part.first * in_plane;
      if (at.expands) {
        float *expanded = scratch(Slot::kPlanes, kRows * in_plane);
        expansion.run(part.first, part.last, in_plane, expanded, in_plane, input, in_plane,
                      /*residual=*/nullptr);
        plane = expanded;
      }
      for (int64_t c = part.first; c < part.last; ++c, plane += in_plane) {
        float *out = kept + (part.sample * mid + c) * out_plane;
        conv.pack_input(phases, plane);
        conv.forward(out, line, phases, weight + c * conv.taps);
        add_bias_relu(out, out_plane, bias[c]);
      }
    };
    const auto project = [&](int64_t i) {
      pointwise(projection, parts, parts[i], y, kept, residual ? x : nullptr);
    };
    if (Status status = parallel_then(groups.count(), expand, parts.count(), project)) {
      return status;
    }
  }
  return kOk;
}

}  // namespace spnas
