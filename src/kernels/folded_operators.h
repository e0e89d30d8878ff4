// Layers of a folded network as operators: convolutions with bias, followed by ReLU. Without
// gradients. Weights are (O, C, k, k), biases (O,).
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
    pointwise(conv, parts, parts[i], call.data(kY), call.data(kX));
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

}  // namespace spnas
