// The core of an MBConv or shuffle block as one operator: batch normalisation, ReLU, depthwise
// convolution, batch normalisation and, with kRelu, ReLU. With x the output of the expansion,
//
//     h = relu(norm(x)),   z = depthwise(h),   y = relu(next_norm(z)) or next_norm(z),
//
// all of it channel by channel, so that a task needs nothing but its own few channels. Only x and y
// are ever kept: h and z exist a plane at a time, in training z also in the place of y until its
// statistics are known, and backward computes both again. That costs a convolution, and saves
// storing, writing and reading two of the largest tensors of the network.
#pragma once

#include <cstdint>

#include "batch_norm_operators.h"
#include "call.h"
#include "depthwise_operators.h"

namespace spnas {

constexpr int64_t kCoreGroup =
    8;  // channels of a task at most, for the reason given in depthwise_backward

// Scratch of a task: computes z from x, plane by plane.
class Core {
 public:
  explicit Core(const Depthwise &conv)
      : conv_(conv), in_plane_(conv.height * conv.width), phases_(zeroed(0, conv.input_size())),
        hidden_(scratch(1, in_plane_)), lines_(scratch(2, conv.input_size())) {}

  // The packed h of a plane.
  const float *pack_hidden(const float *x, const Normalise &norm) {
    norm.apply<true>(hidden_, x, in_plane_);
    conv_.pack_input(phases_, hidden_);
    return phases_;
  }

  void forward(float *z, const float *x, const Normalise &norm, const float *weight) {
    conv_.forward(z, lines_, pack_hidden(x, norm), weight);
  }

  // Scratch of input_size(), free between two calls.
  float *lines() { return lines_; }

 private:
  const Depthwise &conv_;
  const int64_t in_plane_;
  float *phases_, *hidden_, *lines_;
};

// x, weight, then gamma, beta, moving mean and moving variance of both normalisations, options
//   -> y, then mean, inverse deviation, new moving mean and new moving variance of both
template <bool kRelu>
Status core_train(const Call &call, int stride) {
  if (Status status = call.check(20)) {
    return status;
  }
  if (Status status = check_depthwise(call, 0, 1, 11, stride)) {
    return status;
  }
  if (Status status =
          check_channels(call, 0, {2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 18, 19})) {
    return status;
  }
  if (!call.is_shape(10, {2})) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const Depthwise conv = make_depthwise(call, 0, 1, stride);
  const ForwardNorm norm(call, 2, 10, 12), next_norm(call, 6, 10, 16);
  const float *x = call.data(0), *weight = call.data(1);
  float *y = call.data(11);
  const int64_t in_plane = s.plane(), out_plane = conv.out_height * conv.out_width;
  return parallel(s.c, channel_group(in_plane, kCoreGroup), [&](int64_t first, int64_t last) {
    Core core(conv);
    norm.use_batch(x, s, first, last);
    Sums next_sums[kCoreGroup];
    float shift[kCoreGroup];
    // To and fro, since what was read last is still in cache.
    for (int64_t n = s.n - 1; n >= 0; --n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t i = n * s.c + c;
        float *z = y + i * out_plane;
        core.forward(z, x + i * in_plane, norm.map(c), weight + c * conv.taps);
        if (n == s.n - 1) {
          shift[c - first] = choose_shift(z, out_plane);
        }
        add_sums(next_sums[c - first], z, out_plane, shift[c - first]);
      }
    }
    for (int64_t c = first; c < last; ++c) {
      next_norm.use_sums(c, next_sums[c - first], shift[c - first],
                         static_cast<double>(s.n * out_plane));
    }
    for (int64_t n = 0; n < s.n; ++n) {
      for (int64_t c = first; c < last; ++c) {
        float *z = y + (n * s.c + c) * out_plane;
        next_norm.map(c).template apply<kRelu>(z, z, out_plane);
      }
    }
  });
}

// Inputs as in core_train -> y, then mean and inverse deviation of both normalisations
template <bool kRelu>
Status core_infer(const Call &call, int stride) {
  if (Status status = call.check(16)) {
    return status;
  }
  if (Status status = check_depthwise(call, 0, 1, 11, stride)) {
    return status;
  }
  if (Status status = check_channels(call, 0, {2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15})) {
    return status;
  }
  if (!call.is_shape(10, {2})) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const Depthwise conv = make_depthwise(call, 0, 1, stride);
  const ForwardNorm norm(call, 2, 10, 12), next_norm(call, 6, 10, 14);
  const float *x = call.data(0), *weight = call.data(1);
  float *y = call.data(11);
  norm.use_moving(s.c);
  next_norm.use_moving(s.c);
  const int64_t in_plane = s.plane(), out_plane = conv.out_height * conv.out_width;
  return parallel(s.n * s.c, std::max<int64_t>(1, kGrain / in_plane),
                  [&](int64_t first, int64_t last) {
                    Core core(conv);
                    for (int64_t i = first; i < last; ++i) {
                      const int64_t c = i % s.c;
                      float *z = y + i * out_plane;
                      core.forward(z, x + i * in_plane, norm.map(c), weight + c * conv.taps);
                      next_norm.map(c).template apply<kRelu>(z, z, out_plane);
                    }
                  });
}

// x, weight, then gamma, beta, mean and inverse deviation of both normalisations, dy
//   -> dx, dweight, then dgamma and dbeta of both
template <bool kRelu, bool kBatch>
Status core_backward(const Call &call, int stride) {
  if (Status status = call.check(17)) {
    return status;
  }
  if (Status status = check_depthwise(call, 0, 1, 10, stride)) {
    return status;
  }
  if (Status status = check_channels(call, 0, {2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16})) {
    return status;
  }
  if (!same_shape(call, 0, 11) || !same_shape(call, 1, 12)) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const Depthwise conv = make_depthwise(call, 0, 1, stride);
  const BackwardNorm<kBatch> norm(call, 2, 13), next_norm(call, 6, 15);
  const float *x = call.data(0), *weight = call.data(1), *dy = call.data(10);
  float *dx = call.data(11), *dweight = call.data(12);
  const int64_t in_plane = s.plane(), out_plane = conv.out_height * conv.out_width;
  return parallel(s.c, channel_group(in_plane, kCoreGroup), [&](int64_t first, int64_t last) {
    Core core(conv);
    float *line = zeroed(3, conv.output_size());
    // z of all samples, next to each other for a channel group; later its gradient.
    float *group = scratch(4, s.n * (last - first) * out_plane);
    const auto group_plane = [&](int64_t n, int64_t c) {
      return group + (n * (last - first) + c - first) * out_plane;
    };
    Sums sums[kCoreGroup], next_sums[kCoreGroup];
    Correction correction[kCoreGroup];
    for (int64_t n = 0; n < s.n; ++n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t i = n * s.c + c;
        float *z = group_plane(n, c);
        core.forward(z, x + i * in_plane, norm.map(c), weight + c * conv.taps);
        next_norm.map(c).template add_gradient_sums<kRelu>(next_sums[c - first], dy + i * out_plane,
                                                           z, out_plane);
      }
    }
    for (int64_t c = first; c < last; ++c) {
      correction[c - first] =
          next_norm.finish(c, next_sums[c - first], static_cast<double>(s.n * out_plane));
    }
    KernelGradient kernel(conv, last - first);
    for (int64_t n = s.n - 1; n >= 0; --n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t i = n * s.c + c;
        float *dz = group_plane(n, c), *dh = dx + i * in_plane;
        next_norm.map(c).template gradient<kRelu>(dz, dy + i * out_plane, dz, out_plane,
                                                  correction[c - first]);
        conv.pack_output(line, dz);
        kernel.add(c - first, line, core.pack_hidden(x + i * in_plane, norm.map(c)));
        conv.input_gradient(dh, core.lines(), line, weight + c * conv.taps);
        norm.map(c).template add_gradient_sums<true>(sums[c - first], dh, x + i * in_plane,
                                                     in_plane);
      }
      kernel.end_sample();
    }
    kernel.write(dweight + first * conv.taps);
    for (int64_t c = first; c < last; ++c) {
      correction[c - first] = norm.finish(c, sums[c - first], static_cast<double>(s.n * in_plane));
    }
    for (int64_t n = 0; n < s.n; ++n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t i = (n * s.c + c) * in_plane;
        norm.map(c).template gradient<true>(dx + i, dx + i, x + i, in_plane, correction[c - first]);
      }
    }
  });
}

}  // namespace spnas
