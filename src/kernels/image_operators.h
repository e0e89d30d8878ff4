// Convolution of images, the stem of a network, for training: x (N, C, H, W) with few channels C,
// weight (O, C, k, k), y (N, O, ceil(H / stride), ceil(W / stride)). Backward takes it for O * C
// depthwise convolutions. The gradient of the images is left to MindSpore: training does not need
// it.
#pragma once

#include <cstdint>
#include <vector>

#include "call.h"
#include "convolution.h"
#include "convolution_tasks.h"
#include "depthwise_operators.h"

namespace spnas {

constexpr int64_t kMaxImageChannels = 4;

inline Status check_image(const Call &call, int x, int weight, int y, int stride) {
  if (call.ndims[x] != 4 || call.ndims[weight] != 4 || !Shape(call, x).valid() ||
      !Shape(call, weight).valid()) {
    return kBadShape;
  }
  const Shape s(call, x);
  const int64_t outputs = call.shapes[weight][0], k = call.shapes[weight][2];
  const bool known = is_kernel(k) && s.c <= kMaxImageChannels;
  const bool fits =
      call.is_shape(weight, {outputs, s.c, k, k}) && is_output(call, y, s, outputs, stride);
  return known && fits ? kOk : kBadShape;
}

// x, weight -> y
inline Status image_forward(const Call &call, int stride) {
  if (Status status = call.check(3)) {
    return status;
  }
  if (Status status = check_image(call, 0, 1, 2, stride)) {
    return status;
  }
  const Shape s(call, 0);
  const Depthwise layout = make_depthwise(call, 0, 1, stride);
  const Convolution conv{call.data(1), nullptr, s.c, layout.taps, layout.offsets(), false};
  return convolve(conv, layout, s.n, call.shapes[1][0], call.data(2), call.data(0));
}

// x, weight, dy -> dweight
inline Status image_backward(const Call &call, int stride) {
  if (Status status = call.check(4)) {
    return status;
  }
  if (Status status = check_image(call, 0, 1, 2, stride)) {
    return status;
  }
  if (!same_shape(call, 1, 3)) {
    return kBadShape;
  }
  const Shape s(call, 0), out(call, 2);
  const Depthwise conv = make_depthwise(call, 0, 1, stride);
  const float *x = call.data(0), *dy = call.data(2);
  const int64_t size = out.c * s.c * conv.taps;
  std::vector<float> gradients(s.n * size);  // of each sample
  const Status status = parallel(s.n, 1, [&](int64_t n, int64_t) {
    float *phases = zeroed(0, s.c * conv.input_size()), *line = zeroed(1, conv.output_size());
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
    call.data(3)[i] = static_cast<float>(sum);
  }
  return status;
}

}  // namespace spnas
