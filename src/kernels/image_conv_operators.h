// Convolution of images, the stem of a network, for training: x (N, C, H, W) with few channels C,
// weight (O, C, k, k), y (N, O, ceil(H / stride), ceil(W / stride)).
//
// Backward computes O * C depthwise convolutions. The gradient of the images is left to MindSpore:
// training does not need it.
#pragma once

#include <cstdint>
#include <vector>

#include "call.h"
#include "convolution.h"
#include "convolution_tasks.h"
#include "depthwise_operators.h"
#include "scratch.h"
#include "stem_operators.h"
#include "tasks.h"

namespace spnas {

// kOk if the parameters at these places fit each other.
inline Status check_image_conv(const Call &call, int x, int weight, int y, int stride) {
  if (call.ndims[x] != 4 || call.ndims[weight] != 4 || !Shape(call, x).valid() ||
      !Shape(call, weight).valid()) {
    return kBadShape;
  }
  const Shape s(call, x), kernel(call, weight);
  const bool known = is_kernel(kernel.h) && s.c <= kMaxImageChannels;
  const bool fits = call.is_shape(weight, {kernel.n, s.c, kernel.h, kernel.h}) &&
                    is_output(call, y, s, kernel.n, stride);
  return known && fits ? kOk : kBadShape;
}

inline Status image_forward(const Call &call, int stride) {
  enum { kX, kWeight, kY, kCount };
  if (Status status = call.check(kCount)) {
    return status;
  }
  if (Status status = check_image_conv(call, kX, kWeight, kY, stride)) {
    return status;
  }
  const Shape s(call, kX);
  const Depthwise layout = make_depthwise(call, kX, kWeight, stride);
  const Convolution conv =
      make_convolution(call.data(kWeight), /*bias=*/nullptr, s.c, layout, /*relu=*/false);
  const int64_t outputs = Shape(call, kWeight).n;
  return convolve(conv, layout, s.n, outputs, call.data(kY), call.data(kX));
}

inline Status image_backward(const Call &call, int stride) {
  enum { kX, kWeight, kDy, kDWeight, kCount };
  if (Status status = call.check(kCount)) {
    return status;
  }
  if (Status status = check_image_conv(call, kX, kWeight, kDy, stride)) {
    return status;
  }
  if (!same_shape(call, kWeight, kDWeight)) {
    return kBadShape;
  }
  const Shape s(call, kX), out(call, kDy);
  const Depthwise conv = make_depthwise(call, kX, kWeight, stride);
  const float *x = call.data(kX), *dy = call.data(kDy);
  float *dweight = call.data(kDWeight);
  const int64_t size = out.c * s.c * conv.taps;
  std::vector<float> gradients(s.n * size);  // of each sample
  const Status status = parallel(s.n, 1, [&](int64_t n, int64_t) {
    float *phases = zeroed(Slot::kPhases, s.c * conv.input_size());  // of all channels
    float *line = zeroed(Slot::kLine, conv.output_size());
    for (int64_t c = 0; c < s.c; ++c) {
      conv.pack_input(phases + c * conv.input_size(), x + (n * s.c + c) * s.plane());
    }
    KernelGradient sums(conv, out.c * s.c);
    for (int64_t o = 0; o < out.c; ++o) {
      conv.pack_output(line, dy + (n * out.c + o) * out.plane());
      for (int64_t c = 0; c < s.c; ++c) {
        sums.add(o * s.c + c, line, phases + c * conv.input_size());
      }
    }
    sums.write(gradients.data() + n * size);
  });
  for (int64_t i = 0; i < size; ++i) {
    double sum = 0;
    for (int64_t n = 0; n < s.n; ++n) {
      sum += gradients[n * size + i];
    }
    dweight[i] = static_cast<float>(sum);
  }
  return status;
}

}  // namespace spnas
