// Entry points of the operators, as ops.Custom(func_type="aot") calls them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "batch_norm.h"
#include "call.h"
#include "depthwise.h"
#include "inference_operators.h"

namespace spnas {
namespace {

// --- depthwise convolution: x (N, C, H, W), weight (C, 1, k, k), y (N, C, ceil(H / stride), ceil(W / stride))

Status check_depthwise(const Call &call, int x, int weight, int y, int stride) {
  if (call.ndims[x] != 4 || call.ndims[weight] != 4 || !Shape(call, x).valid()) {
    return kBadShape;
  }
  const Shape s(call, x);
  const int64_t k = call.shapes[weight][2];
  const bool known = k == 3 || k == 5 || k == 7;
  const bool fits = call.is_shape(weight, {s.c, 1, k, k}) &&
                    call.is_shape(y, {s.n, s.c, (s.h - 1) / stride + 1, (s.w - 1) / stride + 1});
  return known && fits ? kOk : kBadShape;
}

Depthwise make_depthwise(const Call &call, int x, int weight, int stride) {
  const Shape s(call, x);
  return Depthwise(s.h, s.w, static_cast<int>(call.shapes[weight][2]), stride);
}

// x, weight -> y
Status depthwise_forward(const Call &call, int stride) {
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
  return parallel(s.n * s.c, std::max<int64_t>(1, kGrain / in_plane), [&](int64_t first, int64_t last) {
    float *phases = zeroed(0, conv.input_size()), *line = scratch(1, conv.output_size());
    for (int64_t i = first; i < last; ++i) {
      conv.pack_input(phases, x + i * in_plane);
      conv.forward(y + i * out_plane, line, phases, weight + i % s.c * conv.taps);
    }
  });
}

// Kernel gradients of a few channels. Summed in float over at least kFlush pixels, from there on in double.
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
Status depthwise_backward(const Call &call, int stride) {
  if (Status status = call.check(5)) {
    return status;
  }
  if (Status status = check_depthwise(call, 0, 1, 2, stride)) {
    return status;
  }
  const Shape s(call, 0);
  const Depthwise conv = make_depthwise(call, 0, 1, stride);
  if (!call.is_shape(3, {s.n, s.c, s.h, s.w}) || !call.is_shape(4, {s.c, 1, conv.kernel, conv.kernel})) {
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

// --- batch normalisation: x, y (N, C, H, W); everything else (C,), but options (2,) = epsilon, momentum

// x, gamma, beta, moving mean, moving variance, options
//   -> y, mean, inverse deviation, new moving mean, new moving variance
template <bool kRelu>
Status norm_train(const Call &call) {
  if (Status status = call.check(11)) {
    return status;
  }
  if (Status status = check_channels(call, 0, {1, 2, 3, 4, 7, 8, 9, 10})) {
    return status;
  }
  if (!call.is_shape(5, {2}) || !same_shape(call, 0, 6)) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const float *x = call.data(0), *gamma = call.data(1), *beta = call.data(2);
  const float *moving_mean = call.data(3), *moving_variance = call.data(4);
  const float epsilon = call.data(5)[0], momentum = call.data(5)[1];
  float *y = call.data(6), *mean = call.data(7), *inverse = call.data(8);
  float *new_mean = call.data(9), *new_variance = call.data(10);
  const int64_t plane = s.plane();
  const double count = static_cast<double>(s.channel());
  // As MindSpore's operator does, the moving variance averages the unbiased one.
  const float unbiased = static_cast<float>(count / std::max(1.0, count - 1));
  return parallel(s.c, channel_group(plane), [&](int64_t first, int64_t last) {
    Sums sums[kMaxGroup];
    float shift[kMaxGroup];
    for (int64_t c = first; c < last; ++c) {
      shift[c - first] = choose_shift(x + c * plane, plane);
    }
    for (int64_t n = 0; n < s.n; ++n) {
      for (int64_t c = first; c < last; ++c) {
        add_sums(sums[c - first], x + (n * s.c + c) * plane, plane, shift[c - first]);
      }
    }
    for (int64_t c = first; c < last; ++c) {
      const Moments m = moments(sums[c - first], shift[c - first], count, epsilon);
      mean[c] = m.mean;
      inverse[c] = m.inverse_deviation;
      new_mean[c] = momentum * moving_mean[c] + (1 - momentum) * m.mean;
      new_variance[c] = momentum * moving_variance[c] + (1 - momentum) * m.variance * unbiased;
    }
    // Backwards, since the last samples are still in cache.
    for (int64_t n = s.n - 1; n >= 0; --n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t i = (n * s.c + c) * plane;
        Normalise(mean[c], inverse[c], gamma[c], beta[c]).apply<kRelu>(y + i, x + i, plane);
      }
    }
  });
}

// x, gamma, beta, moving mean, moving variance, options -> y, mean, inverse deviation
template <bool kRelu>
Status norm_infer(const Call &call) {
  if (Status status = call.check(9)) {
    return status;
  }
  if (Status status = check_channels(call, 0, {1, 2, 3, 4, 7, 8})) {
    return status;
  }
  if (!call.is_shape(5, {2}) || !same_shape(call, 0, 6)) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const float *x = call.data(0), *gamma = call.data(1), *beta = call.data(2);
  const float epsilon = call.data(5)[0];
  float *y = call.data(6), *mean = call.data(7), *inverse = call.data(8);
  for (int64_t c = 0; c < s.c; ++c) {
    mean[c] = call.data(3)[c];
    inverse[c] = 1 / std::sqrt(call.data(4)[c] + epsilon);
  }
  const int64_t plane = s.plane();
  return parallel(s.n * s.c, std::max<int64_t>(1, kGrain / plane), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t c = i % s.c;
      Normalise(mean[c], inverse[c], gamma[c], beta[c]).apply<kRelu>(y + i * plane, x + i * plane, plane);
    }
  });
}

// x, gamma, beta, mean, inverse deviation, dy -> dx, dgamma, dbeta
//
// kBatch: mean and deviation are those of x itself, which adds their derivatives.
template <bool kRelu, bool kBatch>
Status norm_backward(const Call &call) {
  if (Status status = call.check(9)) {
    return status;
  }
  if (Status status = check_channels(call, 0, {1, 2, 3, 4, 7, 8})) {
    return status;
  }
  if (!same_shape(call, 0, 5) || !same_shape(call, 0, 6)) {
    return kBadShape;
  }
  const Shape s(call, 0);
  const float *x = call.data(0), *gamma = call.data(1), *beta = call.data(2);
  const float *mean = call.data(3), *inverse = call.data(4), *dy = call.data(5);
  float *dx = call.data(6), *dgamma = call.data(7), *dbeta = call.data(8);
  const int64_t plane = s.plane();
  const double count = static_cast<double>(s.channel());
  return parallel(s.c, channel_group(plane), [&](int64_t first, int64_t last) {
    Sums sums[kMaxGroup];
    for (int64_t n = 0; n < s.n; ++n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t i = (n * s.c + c) * plane;
        const Normalise norm(mean[c], inverse[c], gamma[c], beta[c]);
        norm.add_gradient_sums<kRelu>(sums[c - first], dy + i, x + i, plane);
      }
    }
    float mean_gradient[kMaxGroup] = {}, slope[kMaxGroup] = {};
    for (int64_t c = first; c < last; ++c) {
      const Sums &sum = sums[c - first];
      dgamma[c] = static_cast<float>(sum.second * inverse[c]);
      dbeta[c] = static_cast<float>(sum.first);
      if (kBatch) {
        mean_gradient[c - first] = static_cast<float>(sum.first / count);
        slope[c - first] = static_cast<float>(sum.second / count * inverse[c] * inverse[c]);
      }
    }
    for (int64_t n = s.n - 1; n >= 0; --n) {
      for (int64_t c = first; c < last; ++c) {
        const int64_t i = (n * s.c + c) * plane;
        const Normalise norm(mean[c], inverse[c], gamma[c], beta[c]);
        norm.gradient<kRelu>(dx + i, dy + i, x + i, plane, mean_gradient[c - first], slope[c - first]);
      }
    }
  });
}

}  // namespace
}  // namespace spnas

#define SPNAS_OPERATOR(name, ...)                                                                           \
  extern "C" __attribute__((visibility("default"))) int name(int count, void **params, int *ndims,          \
                                                             int64_t **shapes, const char **dtypes, void *, \
                                                             void *) {                                      \
    using namespace spnas;                                                                                  \
    const Call call{count, params, ndims, shapes, dtypes};                                                  \
    return guarded([&] { return __VA_ARGS__; });                                                            \
  }

SPNAS_OPERATOR(DepthwiseForward1, depthwise_forward(call, 1))
SPNAS_OPERATOR(DepthwiseForward2, depthwise_forward(call, 2))
SPNAS_OPERATOR(DepthwiseBackward1, depthwise_backward(call, 1))
SPNAS_OPERATOR(DepthwiseBackward2, depthwise_backward(call, 2))
SPNAS_OPERATOR(NormTrain, norm_train<false>(call))
SPNAS_OPERATOR(NormReluTrain, norm_train<true>(call))
SPNAS_OPERATOR(NormInfer, norm_infer<false>(call))
SPNAS_OPERATOR(NormReluInfer, norm_infer<true>(call))
SPNAS_OPERATOR(NormTrainBackward, norm_backward<false, true>(call))
SPNAS_OPERATOR(NormReluTrainBackward, norm_backward<true, true>(call))
SPNAS_OPERATOR(NormInferBackward, norm_backward<false, false>(call))
SPNAS_OPERATOR(NormReluInferBackward, norm_backward<true, false>(call))
SPNAS_OPERATOR(PointwiseRelu, pointwise_relu(call))
SPNAS_OPERATOR(ConvRelu1, conv_relu(call, 1))
SPNAS_OPERATOR(ConvRelu2, conv_relu(call, 2))
SPNAS_OPERATOR(MBConv1, mbconv(call, 1, false))
SPNAS_OPERATOR(MBConv2, mbconv(call, 2, false))
SPNAS_OPERATOR(MBConvResidual, mbconv(call, 1, true))
