// Depthwise convolution as operators: x (N, C, H, W), weight (C, 1, k, k),
// y (N, C, ceil(H / stride), ceil(W / stride)).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "call.h"
#include "depthwise.h"
#include "scratch.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

// kOk if the parameters at these places fit each other.
inline Status check_depthwise(const Call &call, int x, int weight, int y, int stride) {
  if (call.ndims[x] != 4 || call.ndims[weight] != 4 || !Shape(call, x).valid()) {
    return kBadShape;
  }
  const Shape s(call, x);
  const int64_t k = Shape(call, weight).h;
  const bool fits =
      is_kernel(k) && call.is_shape(weight, {s.c, 1, k, k}) && is_output(call, y, s, s.c, stride);
  return fits ? kOk : kBadShape;
}

inline Depthwise make_depthwise(const Call &call, int x, int weight, int stride) {
  const Shape s(call, x);
  return Depthwise(s.h, s.w, static_cast<int>(Shape(call, weight).h), stride);
}

inline Status depthwise_forward(const Call &call, int stride) {
  enum { kX, kWeight, kY, kCount };
  if (Status status = call.check(kCount)) {
    return status;
  }
  if (Status status = check_depthwise(call, kX, kWeight, kY, stride)) {
    return status;
  }
  const Depthwise conv = make_depthwise(call, kX, kWeight, stride);
  const float *x = call.data(kX), *weight = call.data(kWeight);
  float *y = call.data(kY);
  const Shape s(call, kX);
  const int64_t in_plane = conv.in_plane(), out_plane = conv.out_plane();
  return parallel(s.n * s.c, plane_group(in_plane), [&](int64_t first, int64_t last) {
    float *phases = zeroed(Slot::kPhases, conv.input_size());
    float *line = scratch(Slot::kLine, conv.output_size());
    for (int64_t i = first; i < last; ++i) {
      conv.pack_input(phases, x + i * in_plane);
      conv.forward(y + i * out_plane, line, phases, weight + i % s.c * conv.taps);
    }
  });
}

// Channels of a task in backward direction at most. Few, so that the sums of their kernels'
// gradients, up to 49 vectors each, do not push the planes out of cache.
constexpr int64_t kGradientGroup = 8;

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
    pixels_ += conv_.out_plane();
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

inline Status depthwise_backward(const Call &call, int stride) {
  enum { kX, kWeight, kDy, kDx, kDWeight, kCount };
  if (Status status = call.check(kCount)) {
    return status;
  }
  if (Status status = check_depthwise(call, kX, kWeight, kDy, stride)) {
    return status;
  }
  if (!same_shape(call, kX, kDx) || !same_shape(call, kWeight, kDWeight)) {
    return kBadShape;
  }
  const Shape s(call, kX);
  const Depthwise conv = make_depthwise(call, kX, kWeight, stride);
  const float *x = call.data(kX), *weight = call.data(kWeight), *dy = call.data(kDy);
  float *dx = call.data(kDx), *dweight = call.data(kDWeight);
  const int64_t in_plane = conv.in_plane(), out_plane = conv.out_plane();
  const int64_t group = channel_group(in_plane, kGradientGroup);
  return parallel(s.c, group, [&](int64_t first, int64_t last) {
    float *phases = zeroed(Slot::kPhases, conv.input_size());
    float *line = zeroed(Slot::kLine, conv.output_size());
    float *lines = scratch(Slot::kLines, conv.input_size());
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
