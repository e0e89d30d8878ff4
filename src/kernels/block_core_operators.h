// The core of a shuffle block as one operator: batch normalisation, ReLU, depthwise convolution,
// batch normalisation. With x the output of the convolution before it,
//
//     h = relu(norm(x)),   z = depthwise(h),   y = next_norm(z),
//
// all of it channel by channel, so that a task needs nothing but its own few channels. Only x and y
// are ever kept: h and z exist a plane at a time, in training z also in the place of y until its
// statistics are known, and backward computes both again. That costs a convolution, and saves
// storing, writing and reading two of the largest tensors of the network.
#pragma once

#include <algorithm>
#include <cstdint>

#include "batch_norm_operators.h"
#include "call.h"
#include "depthwise_operators.h"
#include "scratch.h"
#include "tasks.h"

namespace spnas {

// The places of the parameters in forward direction, with kOutputs statistics per normalisation.
template <int kOutputs>
struct CorePlaces {
  enum {
    kX,
    kWeight,
    kNorm,
    kNextNorm = kNorm + ForwardNormInputs::kCount,
    kOptions = kNextNorm + ForwardNormInputs::kCount,
    kY,
    kStatistics,
    kNextStatistics = kStatistics + kOutputs,
    kCount = kNextStatistics + kOutputs
  };
};

struct CoreBackwardPlaces {
  enum {
    kX,
    kWeight,
    kNorm,
    kNextNorm = kNorm + BackwardNormInputs::kCount,
    kDy = kNextNorm + BackwardNormInputs::kCount,
    kDx,
    kDWeight,
    kGradients,
    kNextGradients = kGradients + BackwardNormOutputs::kCount,
    kCount = kNextGradients + BackwardNormOutputs::kCount
  };
};

template <typename At>
Status check_core(const Call &call, int stride) {
  if (Status status = call.check(At::kCount)) {
    return status;
  }
  if (Status status = check_depthwise(call, At::kX, At::kWeight, At::kY, stride)) {
    return status;
  }
  if (Status status = check_channels(call, At::kX,
                                     {{At::kNorm, At::kOptions}, {At::kStatistics, At::kCount}})) {
    return status;
  }
  return call.is_shape(At::kOptions, {NormOptions::kCount}) ? kOk : kBadShape;
}

inline Status check_core_backward(const Call &call, int stride) {
  using At = CoreBackwardPlaces;
  if (Status status = call.check(At::kCount)) {
    return status;
  }
  if (Status status = check_depthwise(call, At::kX, At::kWeight, At::kDy, stride)) {
    return status;
  }
  if (Status status =
          check_channels(call, At::kX, {{At::kNorm, At::kDy}, {At::kGradients, At::kCount}})) {
    return status;
  }
  const bool fits =
      same_shape(call, At::kX, At::kDx) && same_shape(call, At::kWeight, At::kDWeight);
  return fits ? kOk : kBadShape;
}

// Scratch of a task: computes z from x, plane by plane.
class Core {
 public:
  explicit Core(const Depthwise &conv)
      : conv_(conv), phases_(zeroed(Slot::kPhases, conv.input_size())),
        hidden_(scratch(Slot::kPlanes, conv.in_plane())),
        lines_(scratch(Slot::kLines, conv.input_size())) {}

  // The packed h of a plane.
  const float *pack_hidden(const float *x, const Normalise &norm) {
    norm.apply<true>(hidden_, x, conv_.in_plane());
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
  float *phases_, *hidden_, *lines_;
};

inline Status core_train(const Call &call, int stride) {
  using At = CorePlaces<ForwardNormOutputs::kTrainCount>;
  if (Status status = check_core<At>(call, stride)) {
    return status;
  }
  const Shape s(call, At::kX);
  const Depthwise conv = make_depthwise(call, At::kX, At::kWeight, stride);
  const ForwardNorm norm(call, At::kNorm, At::kOptions, At::kStatistics);
  const ForwardNorm next_norm(call, At::kNextNorm, At::kOptions, At::kNextStatistics);
  const float *x = call.data(At::kX), *weight = call.data(At::kWeight);
  float *y = call.data(At::kY);
  const int64_t in_plane = conv.in_plane(), out_plane = conv.out_plane();
  const int64_t group = channel_group(in_plane, kGradientGroup);
  return parallel(s.c, group, [&](int64_t first, int64_t last) {
    Core core(conv);
    norm.use_batch(x, s, first, last);
    Sums next_sums[kGradientGroup];
    float shift[kGradientGroup];
    // Backwards and then forwards, since what was read last is still in cache.
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
    const double count = static_cast<double>(s.n * out_plane);
    for (int64_t c = first; c < last; ++c) {
      next_norm.use_sums(c, next_sums[c - first], shift[c - first], count);
    }
    for (int64_t n = 0; n < s.n; ++n) {
      for (int64_t c = first; c < last; ++c) {
        float *z = y + (n * s.c + c) * out_plane;
        next_norm.map(c).apply<false>(z, z, out_plane);
      }
    }
  });
}

inline Status core_infer(const Call &call, int stride) {
  using At = CorePlaces<ForwardNormOutputs::kInferCount>;
  if (Status status = check_core<At>(call, stride)) {
    return status;
  }
  const Shape s(call, At::kX);
  const Depthwise conv = make_depthwise(call, At::kX, At::kWeight, stride);
  const ForwardNorm norm(call, At::kNorm, At::kOptions, At::kStatistics);
  const ForwardNorm next_norm(call, At::kNextNorm, At::kOptions, At::kNextStatistics);
  const float *x = call.data(At::kX), *weight = call.data(At::kWeight);
  float *y = call.data(At::kY);
  norm.use_moving(s.c);
  next_norm.use_moving(s.c);
  const int64_t in_plane = conv.in_plane(), out_plane = conv.out_plane();
  return parallel(s.n * s.c, plane_group(in_plane), [&](int64_t first, int64_t last) {
    Core core(conv);
    for (int64_t i = first; i < last; ++i) {
      const int64_t c = i % s.c;
      float *z = y + i * out_plane;
      core.forward(z, x + i * in_plane, norm.map(c), weight + c * conv.taps);
      next_norm.map(c).apply<false>(z, z, out_plane);
    }
  });
}

// The backward direction of the channels of a task.
//
// Its steps need each other's results of all samples: first the gradient sums of the second
// normalisation, then, with those, the convolution's gradients and the gradient sums of the first
// normalisation, and with those the gradient of x.
class CoreGradient {
  using At = CoreBackwardPlaces;

 public:
  CoreGradient(const Call &call, const Depthwise &conv, int64_t first, int64_t last)
      : conv_(conv), shape_(call, At::kX), first_(first), last_(last),
        norm_(call, At::kNorm, At::kGradients), next_norm_(call, At::kNextNorm, At::kNextGradients),
        x_(call.data(At::kX)), weight_(call.data(At::kWeight)), dy_(call.data(At::kDy)),
        dx_(call.data(At::kDx)), dweight_(call.data(At::kDWeight)), core_(conv),
        line_(zeroed(Slot::kLine, conv.output_size())),
        group_(scratch(Slot::kGroup, shape_.n * (last - first) * conv.out_plane())) {}

  void run() {
    sum_next();
    convolve();
    finish();
  }

 private:
  // z of a plane, which all samples of a channel group have next to each other; later its gradient.
  float *plane(int64_t n, int64_t c) const {
    return group_ + (n * (last_ - first_) + c - first_) * conv_.out_plane();
  }

  void sum_next() {
    const int64_t in_plane = conv_.in_plane(), out_plane = conv_.out_plane();
    Sums sums[kGradientGroup];
    for (int64_t n = 0; n < shape_.n; ++n) {
      for (int64_t c = first_; c < last_; ++c) {
        const int64_t i = n * shape_.c + c;
        float *z = plane(n, c);
        core_.forward(z, x_ + i * in_plane, norm_.map(c), weight_ + c * conv_.taps);
        next_norm_.map(c).add_gradient_sums<false>(sums[c - first_], dy_ + i * out_plane, z,
                                                   out_plane);
      }
    }
    const double count = static_cast<double>(shape_.n * out_plane);
    for (int64_t c = first_; c < last_; ++c) {
      correction_[c - first_] = next_norm_.finish(c, sums[c - first_], count);
    }
  }

  void convolve() {
    const int64_t in_plane = conv_.in_plane(), out_plane = conv_.out_plane();
    KernelGradient kernel(conv_, last_ - first_);
    for (int64_t n = shape_.n - 1; n >= 0; --n) {  // what was read last is still in cache
      for (int64_t c = first_; c < last_; ++c) {
        const int64_t i = n * shape_.c + c;
        const float *x = x_ + i * in_plane;
        float *dz = plane(n, c), *dh = dx_ + i * in_plane;
        next_norm_.map(c).gradient<false>(dz, dy_ + i * out_plane, dz, out_plane,
                                          correction_[c - first_]);
        conv_.pack_output(line_, dz);
        kernel.add(c - first_, line_, core_.pack_hidden(x, norm_.map(c)));
        conv_.input_gradient(dh, core_.lines(), line_, weight_ + c * conv_.taps);
        norm_.map(c).add_gradient_sums<true>(sums_[c - first_], dh, x, in_plane);
      }
      kernel.end_sample();
    }
    kernel.write(dweight_ + first_ * conv_.taps);
  }

  void finish() {
    const int64_t in_plane = conv_.in_plane();
    const double count = static_cast<double>(shape_.n * in_plane);
    for (int64_t c = first_; c < last_; ++c) {
      correction_[c - first_] = norm_.finish(c, sums_[c - first_], count);
    }
    for (int64_t n = 0; n < shape_.n; ++n) {
      for (int64_t c = first_; c < last_; ++c) {
        const int64_t i = (n * shape_.c + c) * in_plane;
        norm_.map(c).gradient<true>(dx_ + i, dx_ + i, x_ + i, in_plane, correction_[c - first_]);
      }
    }
  }

  const Depthwise &conv_;
  const Shape shape_;  // of x
  const int64_t first_, last_;
  const BackwardNorm norm_, next_norm_;
  const float *x_, *weight_, *dy_;
  float *dx_, *dweight_;
  Core core_;
  float *line_, *group_;
  Correction correction_[kGradientGroup];  // of the second normalisation, then of the first
  Sums sums_[kGradientGroup];              // of the first
};

inline Status core_backward(const Call &call, int stride) {
  using At = CoreBackwardPlaces;
  if (Status status = check_core_backward(call, stride)) {
    return status;
  }
  const Depthwise conv = make_depthwise(call, At::kX, At::kWeight, stride);
  const int64_t group = channel_group(conv.in_plane(), kGradientGroup);
  return parallel(Shape(call, At::kX).c, group, [&](int64_t first, int64_t last) {
    CoreGradient(call, conv, first, last).run();
  });
}

}  // namespace spnas
