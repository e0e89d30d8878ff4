// Depthwise convolution as operators: x (N, C, H, W), weight (C, 1, k, k), y (N, C, ceil(H /
// stride), ceil(W / stride))
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "call.h"
#include "depthwise.h"

namespace spnas {

inline Status check_depthwise(const Call &call, int x, int weight, int y, int stride) {
  if (call.ndims[x] != 4 || call.ndims[weight] != 4 || !Shape(call, x).valid()) {
    return kBadShape;
  }
  const Shape s(call, x);
  const int64_t k = call.shapes[weight][2];
  return is_kernel(k) && call.is_shape(weight, {s.c, 1, k, k}) && is_output(call, y, s, s.c, stride)
             ? kOk
             : kBadShape;
}

inline Depthwise make_depthwise(const Call &call, int x, int weight, int stride) {
  const Shape s(call, x);
  return Depthwise(s.h, s.w, static_cast<int>(call.shapes[weight][2]), stride);
}

// x, weight -> y
inline Status depthwise_forward(const Call &call, int stride) {
  if (Status status = call.check(3)) {
    return status;
  }
  if (Status status = check_depthwise(call, 0, 1, 2, stride)) {
    return status;
  }
  const Depthwise conv = make_depthwise(call, 0, 1, stride);
  const float *x = call.data(0), *weight = call.data(1);
  float *y = call.data(2);
  const Shape s(call, 0);
  const int64_t in_plane = s.plane(), out_plane = conv.out_height * conv.out_width;
  return parallel(
      s.n * s.c, std::max<int64_t>(1, kGrain / in_plane), [&](int64_t first, int64_t last) {
        float *phases = zeroed(0, conv.input_size()), *line = scratch(1, conv.output_size());
        for (int64_t i = first; i < last; ++i) {
          conv.pack_input(phases, x + i * in_plane);
          conv.forward(y + i * out_plane, line, phases, weight + i % s.c * conv.taps);
        }
      });
}

// Kernel gradients of a few channels. Summed in float over at least kFlush pixels, from there on in
// double.
class KernelGradient {
 public:
  KernelGradient(const Depthwise &conv, int64_t channels)
      : conv_(conv), sums_(channels * conv.taps * kLanes), totals_(channels * conv.taps) {}

  void add(int64_t channel, const float *line, const float *phases) {
    conv_.kernel_gradient(sums_.data() + channel * conv_.taps * kLanes, line, phases);
  }

  // Called after each sample has been added to all channels.
  void end_sample() {
    pixels_ += conv_.out_height * conv_.out_width;
    if (pixels_ >= kFlush) {
      flush();
    }
  }

  void write(float *gradient) {
    flush();
    for (size_t i = 0; i < totals_.size(); ++i) {
      gradient[i] = static_cast<float>(totals_[i]);
    }
  }

 private:
  static constexpr int64_t kFlush = 4096;

  void flush() {
    for (size_t i = 0; i < totals_.size(); ++i) {
      double sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        sum += sums_[i * kLanes + lane];
      }
      totals_[i] += sum;
    }
    std::fill(sums_.begin(), sums_.end(), 0.0f);
    pixels_ = 0;
  }

  const Depthwise &conv_;
  std::vector<float> sums_;
  std::vector<double> totals_;
  int64_t pixels_ = 0;
};

// x, weight, dy -> dx, dweight
inline Status depthwise_backward(const Call &call, int stride) {
  if (Status status = call.check(5)) {
    return status;
  }
  if (Status status = check_depthwise(call, 0, 1, 2, stride)) {
    return status;
  }
  const Shape s(call, 0);
  const Depthwise conv = make_depthwise(call, 0, 1, stride);
  if (!call.is_shape(3, {s.n, s.c, s.h, s.w}) ||
      !call.is_shape(4, {s.c, 1, conv.kernel, conv.kernel})) {
    return kBadShape;
  }
  const float *x = call.data(0), *weight = call.data(1), *dy = call.data(2);
  float *dx = call.data(3), *dweight = call.data(4);
  const int64_t in_plane = s.plane(), out_plane = conv.out_height * conv.out_width;
  // Few channels, so that their sums, up to 49 vectors each, do not push the planes out of cache.
  return parallel(s.c, channel_group(in_plane, 8), [&](int64_t first, int64_t last) {
    float *phases = zeroed(0, conv.input_size());
    float *line = zeroed(1, conv.output_size());
    float *lines = scratch(2, conv.input_size());
    KernelGradient sums(conv, last - first);
    for (int64_t n = 0; n < s.n; ++n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t i = n * s.c + c;
        conv.pack_input(phases, x + i * in_plane);
        conv.pack_output(line, dy + i * out_plane);
        conv.input_gradient(dx + i * in_plane, lines, line, weight + c * conv.taps);
        sums.add(c - first, line, phases);
      }
      sums.end_sample();
    }
    sums.write(dweight + first * conv.taps);
  });
}

}  // namespace spnas
