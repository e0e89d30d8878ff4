// The stem of a network as operators: convolution of images, normalisation and ReLU. Images are
// (N, C, H, W) with few channels C, results (N, H', W', O), and the convolution's output s lies in
// groups of 16 channels, (groups, pixels of all samples, 16). T is the type of results and s;
// images and the factors of products are float.
//
// Every tap of an image is one factor for all 16 channels of an output, so images are read as they
// are, with zeros around them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "arena.h"
#include "call.h"
#include "channel_sums.h"
#include "end_call.h"
#include "norm_call.h"
#include "panels.h"
#include "products.h"
#include "scratch.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

constexpr int64_t kMaxImageChannels = 4;

// Sizes of a stem, and the way from images to outputs.
class Stem {
 public:
  const int64_t n, channels, h, w, outputs, kernel, stride, out_h, out_w;

  Stem(const Call &call, int x, int weight, int stride)
      : n(call.shapes[x][0]), channels(call.shapes[x][1]), h(call.shapes[x][2]),
        w(call.shapes[x][3]), outputs(call.shapes[weight][0]), kernel(call.shapes[weight][2]),
        stride(stride), out_h((h - 1) / stride + 1), out_w((w - 1) / stride + 1), x_(call.data(x)),
        weight_(call.data(weight)) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t y = 0; y < kernel; ++y) {
        for (int64_t x = 0; x < kernel; ++x) {
          offsets_.push_back((c * padded_h() + y) * padded_w() + x);
        }
      }
    }
  }

  // Whether the parameters are those of a stem; checked before one is made.
  static bool fits(const Call &call, int x, int weight) {
    if (call.ndims[x] != 4 || call.ndims[weight] != 4 || call.size(x) == 0 ||
        call.size(weight) == 0) {
      return false;
    }
    const int64_t c = call.shapes[x][1], k = call.shapes[weight][2];
    return c <= kMaxImageChannels && is_kernel(k) &&
           call.is_shape(weight, {call.shapes[weight][0], c, k, k});
  }

  int64_t plane() const { return out_h * out_w; }
  int64_t pixels() const { return n * plane(); }
  int64_t groups() const { return group_count(outputs); }
  int64_t taps() const { return channels * kernel * kernel; }

  // (groups, taps, 16); rows multiplied by `scale` unless that is null.
  const float *pack(Arena &arena, const float *scale) const {
    return pack_panels(arena, outputs, taps(), [&](int64_t t, int64_t o) {
      return weight_[o * taps() + t] * (scale == nullptr ? 1 : scale[o]);
    });
  }

  // A sample with zeros around it, in scratch of the thread.
  const float *pad(int64_t sample) const {
    float *padded = zeroed(Slot::kPlanes, channels * padded_h() * padded_w());
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t y = 0; y < h; ++y) {
        std::memcpy(padded + (c * padded_h() + y + kernel / 2) * padded_w() + kernel / 2,
                    x_ + ((sample * channels + c) * h + y) * w, w * sizeof(float));
      }
    }
    return padded;
  }

  // out(pixel, channels) for the outputs of one row of a sample and one group.
  template <typename Out>
  void convolve_row(int64_t y, const float *padded, const float *panel,
                    const Channels<kVecs> &first, const Out &out) const {
    const float *row = padded + y * stride * padded_w();
    int64_t i = 0;
    for (; i + kRows <= out_w; i += kRows) {
      convolve_tile<kRows>(y * out_w + i, row + i * stride, panel, first, out);
    }
    for (; i < out_w; ++i) {
      convolve_tile<1>(y * out_w + i, row + i * stride, panel, first, out);
    }
  }

  // sums (taps, 16) += the weight's gradient, from output gradients (out_w, 16) of one row.
  void weight_gradient(float *sums, int64_t y, const float *padded, const float *gradient) const {
    const float *row = padded + y * stride * padded_w();
    int64_t t = 0;
    for (; t + kRows <= taps(); t += kRows) {
      gradient_tile<kRows>(sums + t * kGroup, row, t, gradient);
    }
    for (; t < taps(); ++t) {
      gradient_tile<1>(sums + t * kGroup, row, t, gradient);
    }
  }

  // Adds the gradient of a padded sample from that of one of its outputs.
  void input_gradient(float *padded, int64_t pixel, int64_t output, float gradient) const {
    float *at = padded + (pixel / out_w * padded_w() + pixel % out_w) * stride;
    for (int64_t t = 0; t < taps(); ++t) {
      at[offsets_[t]] += weight_[output * taps() + t] * gradient;
    }
  }

  int64_t padded_h() const { return h + kernel / 2 * 2; }
  int64_t padded_w() const { return w + kernel / 2 * 2; }

 private:
  static constexpr int kRows = tile_rows<kVecs>() > 6 ? 9 : tile_rows<kVecs>();

  template <int kR, typename Out>
  void convolve_tile(int64_t pixel, const float *in, const float *panel,
                     const Channels<kVecs> &first, const Out &out) const {
    Channels<kVecs> sum[kR];
    for (int r = 0; r < kR; ++r) {
      sum[r] = first;
    }
    for (size_t t = 0; t < offsets_.size(); ++t, panel += kGroup) {
      const float *at = in + offsets_[t];
      Vec b[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        b[v] = load(panel + v * kLanes);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          sum[r].v[v] += at[r * stride] * b[v];
        }
      }
    }
    for (int r = 0; r < kR; ++r) {
      out(pixel + r, sum[r]);
    }
  }

  template <int kR>
  void gradient_tile(float *sums, const float *row, int64_t tap, const float *gradient) const {
    Vec sum[kR][kVecs] = {};
    const float *at[kR];
    for (int r = 0; r < kR; ++r) {
      at[r] = row + offsets_[tap + r];
    }
    for (int64_t i = 0; i < out_w; ++i) {
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) {
        const float factor = at[r][i * stride];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          sum[r][v] += factor * load(gradient + i * kGroup + v * kLanes);
        }
      }
    }
    for (int r = 0; r < kR; ++r) {
      for (int v = 0; v < kVecs; ++v) {
        float *out = sums + r * kGroup + v * kLanes;
        store(out, load(out) + sum[r][v]);
      }
    }
  }

  const float *x_, *weight_;
  std::vector<int64_t> offsets_;  // of taps
};

// x, weight, normalisation, options -> y, s, statistics, new moving statistics
template <typename T>
Status stem_train(const Call &call, int stride) {
  using At = EndTrainPlaces;
  if (Status status = call.check<T>(At::kCount, {At::kY, At::kConvolved})) {
    return status;
  }
  if (!Stem::fits(call, At::kX, At::kWeight)) {
    return kBadShape;
  }
  const Stem stem(call, At::kX, At::kWeight, stride);
  if (!At::fits(call, stem.outputs, stem.pixels()) ||
      !call.is_shape(At::kY, {stem.n, stem.out_h, stem.out_w, stem.outputs})) {
    return kBadShape;
  }
  Arena arena;
  const Affine affine(arena, stem.outputs);
  T *s = call.data<T>(At::kConvolved), *y = call.data<T>(At::kY);
  const TrainNorm norm(call, At::kNorm, At::kOptions, call.data(At::kStatistics), stem.outputs,
                       At::kMoving);
  const float *panels = stem.pack(arena, /*scale=*/nullptr);
  // Sums of a few rows each, which are in cache.
  const int64_t plane = stem.plane(), rows = std::max<int64_t>(1, kSumPixels / stem.out_w);
  const int64_t parts = divide_up(stem.out_h, rows);
  float *sums = arena.take(stem.groups() * stem.n * parts * 2 * kGroup);
  Status status = parallel(stem.n, 1, [&](int64_t n, int64_t) {
    const float *padded = stem.pad(n);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = part * rows, last = std::min(stem.out_h, first + rows);
      for (int64_t g = 0; g < stem.groups(); ++g) {
        T *out = s + (g * stem.n + n) * plane * kGroup;
        for (int64_t y = first; y < last; ++y) {
          stem.convolve_row(
              y, padded, panels + g * stem.taps() * kGroup, Channels<kVecs>{},
              [&](int64_t i, const Channels<kVecs> &c) { store_channels(out + i * kGroup, c); });
        }
        part_sums<kVecs>(sums + ((g * stem.n + n) * parts + part) * 2 * kGroup,
                         out + first * stem.out_w * kGroup, kGroup, kGroup,
                         (last - first) * stem.out_w);
      }
    }
  });
  if (status) {
    return status;
  }
  const auto pixels = [&](int64_t i) {
    return std::min(rows, stem.out_h - i % parts * rows) * stem.out_w;
  };
  if ((status = norm.use_parts(stem.outputs, stem.n * parts, sums, pixels, affine))) {
    return status;
  }
  const float ceiling = call.data(At::kOptions)[Options::kCeiling];
  return parallel(stem.pixels(), kSumPixels, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      for (int64_t g = 0; g < stem.groups(); ++g) {
        Channels<kVecs> c = load_channels(s + (g * stem.pixels() + i) * kGroup);
        const Channels<kVecs> scale = load_channels(affine.scale + g * kGroup);
        const Channels<kVecs> shift = load_channels(affine.shift + g * kGroup);
        for (int v = 0; v < kVecs; ++v) {
          c.v[v] = c.v[v] * scale.v[v] + shift.v[v];
        }
        store_part(y + i * stem.outputs + g * kGroup, relu(c, ceiling),
                   group_size(stem.outputs, g));
      }
    }
  });
}

// x, weight, normalisation, options -> y; folded: a bias in place of the normalisation.
inline Status stem_infer(const Call &call, int stride, bool folded) {
  const EndInferPlaces at(folded);
  if (Status status = call.check(at.count)) {
    return status;
  }
  if (!Stem::fits(call, at.kX, at.kWeight)) {
    return kBadShape;
  }
  const Stem stem(call, at.kX, at.kWeight, stride);
  if (!at.fits(call, stem.outputs) ||
      !call.is_shape(at.y, {stem.n, stem.out_h, stem.out_w, stem.outputs})) {
    return kBadShape;
  }
  Arena arena;
  const Affine affine =
      moving_affine(call, at.kNorm, at.options, folded, stem.outputs, stem.outputs, arena);
  const float *panels = stem.pack(arena, affine.scale);
  const float ceiling = call.data(at.options)[Options::kCeiling];
  return parallel(stem.n, 1, [&](int64_t n, int64_t) {
    const float *padded = stem.pad(n);
    float *out = call.data(at.y) + n * stem.plane() * stem.outputs;
    for (int64_t y = 0; y < stem.out_h; ++y) {
      for (int64_t g = 0; g < stem.groups(); ++g) {
        stem.convolve_row(y, padded, panels + g * stem.taps() * kGroup,
                          load_channels(affine.shift + g * kGroup),
                          [&](int64_t i, const Channels<kVecs> &c) {
                            store_part(out + i * stem.outputs + g * kGroup, relu(c, ceiling),
                                       group_size(stem.outputs, g));
                          });
      }
    }
  });
}

// What both gradients of a stem need.
struct StemBackwardPlaces {
  enum { kX, kWeight, kGamma, kBeta, kS, kStatistics, kOptions, kDy, kInputs };
};

template <typename T>
Status check_stem_backward(const Call &call, int count, int stride) {
  using At = StemBackwardPlaces;
  if (Status status = call.check<T>(count, {At::kS, At::kDy})) {
    return status;
  }
  if (!Stem::fits(call, At::kX, At::kWeight)) {
    return kBadShape;
  }
  const Stem stem(call, At::kX, At::kWeight, stride);
  const bool fits = call.is_shape(At::kOptions, {Options::kCount}) &&
                    call.is_shape(At::kDy, {stem.n, stem.out_h, stem.out_w, stem.outputs}) &&
                    call.is_shape(At::kS, {stem.groups(), stem.pixels(), kGroup}) &&
                    call.is_shape(At::kStatistics, {StatisticsRows::kCount, stem.outputs}) &&
                    call.are_channels({{At::kGamma, At::kS}}, stem.outputs);
  return fits ? kOk : kBadShape;
}

// dy where ReLU was active, and below its ceiling, of pixel i and one group.
template <typename T>
inline Channels<kVecs> active_gradient(const Stem &stem, const NormGradient &norm, float ceiling,
                                       const T *s, const T *dy, int64_t i, int64_t g) {
  Channels<kVecs> gradient =
      load_part<kVecs>(dy + i * stem.outputs + g * kGroup, group_size(stem.outputs, g));
  const Channels<kVecs> scale = load_channels(norm.scale + g * kGroup);
  const Channels<kVecs> shift = load_channels(norm.shift + g * kGroup);
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    const Vec value =
        load(s + (g * stem.pixels() + i) * kGroup + v * kLanes) * scale.v[v] + shift.v[v];
    gradient.v[v] = relu_gradient(value, ceiling, gradient.v[v]);
  }
  return gradient;
}

// The gradient of s, of pixel i and one group.
template <typename T>
inline Channels<kVecs> stem_gradient(const Stem &stem, const NormGradient &norm, float ceiling,
                                     const T *s, const T *dy, int64_t i, int64_t g) {
  Channels<kVecs> gradient = active_gradient(stem, norm, ceiling, s, dy, i, g);
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    const int64_t at = g * kGroup + v * kLanes;
    gradient.v[v] =
        load(norm.scale + at) * gradient.v[v] +
        (load(norm.in_factor + at) * load(s + (g * stem.pixels() + i) * kGroup + v * kLanes) +
         load(norm.constant + at));
  }
  return gradient;
}

// x, weight, gamma, beta, s, statistics, options, dy -> dweight, dgamma, dbeta
template <typename T>
Status stem_backward(const Call &call, int stride) {
  using At = StemBackwardPlaces;
  enum { kDWeight = At::kInputs, kDGamma, kDBeta, kCount };
  if (Status status = check_stem_backward<T>(call, kCount, stride)) {
    return status;
  }
  const Stem stem(call, At::kX, At::kWeight, stride);
  if (!same_shape(call, At::kWeight, kDWeight) ||
      !call.are_channels({{kDGamma, kCount}}, stem.outputs)) {
    return kBadShape;
  }
  Arena arena;
  const NormGradient norm(arena, stem.outputs, stem.outputs, call.data(At::kGamma),
                          call.data(At::kBeta), call.data(At::kStatistics));
  const T *s = call.data<T>(At::kS), *dy = call.data<T>(At::kDy);
  const float ceiling = call.data(At::kOptions)[Options::kCeiling];
  const int64_t groups = stem.groups(), plane = stem.plane(), taps = stem.taps();
  double *sums = reinterpret_cast<double *>(arena.zeros(2 * stem.n * groups * 2 * kGroup));
  Status status = parallel(stem.n, 1, [&](int64_t n, int64_t) {
    for (int64_t g = 0; g < groups; ++g) {
      const Channels<kVecs> mean = load_channels(norm.mean + g * kGroup);
      double *sum = sums + (n * groups + g) * 2 * kGroup;
      for (int64_t part = 0; part < plane; part += kSumPixels) {
        const int64_t last = std::min(plane, part + kSumPixels);
        Vec first[kVecs] = {}, second[kVecs] = {};
        for (int64_t i = n * plane + part; i < n * plane + last; ++i) {
          const Channels<kVecs> gradient = active_gradient(stem, norm, ceiling, s, dy, i, g);
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) {
            first[v] += gradient.v[v];
            second[v] += gradient.v[v] *
                         (load(s + (g * stem.pixels() + i) * kGroup + v * kLanes) - mean.v[v]);
          }
        }
        add_channels(sum, first);
        add_channels(sum + kGroup, second);
      }
    }
  });
  for (int64_t o = 0; o < stem.outputs; ++o) {
    double first = 0, second = 0;
    for (int64_t n = 0; n < stem.n; ++n) {
      const double *sum = sums + (n * groups + o / kGroup) * 2 * kGroup + o % kGroup;
      first += sum[0];
      second += sum[kGroup];
    }
    norm.finish(o, first, second, static_cast<double>(stem.pixels()), call.data(kDGamma),
                call.data(kDBeta));
  }
  if (status) {
    return status;
  }
  float *products = arena.zeros(stem.n * groups * taps * kGroup);
  status = parallel(stem.n, 1, [&](int64_t n, int64_t) {
    const float *padded = stem.pad(n);
    float *gradient = scratch(Slot::kTile, stem.out_w * kGroup);
    for (int64_t y = 0; y < stem.out_h; ++y) {
      for (int64_t g = 0; g < groups; ++g) {
        for (int64_t i = 0; i < stem.out_w; ++i) {
          const int64_t pixel = n * plane + y * stem.out_w + i;
          store_channels(gradient + i * kGroup,
                         stem_gradient(stem, norm, ceiling, s, dy, pixel, g));
        }
        stem.weight_gradient(products + (n * groups + g) * taps * kGroup, y, padded, gradient);
      }
    }
  });
  float *dweight = call.data(kDWeight);
  for (int64_t o = 0; o < stem.outputs; ++o) {
    for (int64_t t = 0; t < taps; ++t) {
      double sum = 0;
      for (int64_t n = 0; n < stem.n; ++n) {
        sum += products[((n * groups + o / kGroup) * taps + t) * kGroup + o % kGroup];
      }
      dweight[o * taps + t] = static_cast<float>(sum);
    }
  }
  return status;
}

// The inputs of stem_backward and its results dgamma, dbeta -> dx. An operator of its own, since
// training does not need it; its speed does not count.
template <typename T>
Status stem_input_gradient(const Call &call, int stride) {
  using At = StemBackwardPlaces;
  enum { kDGamma = At::kInputs, kDBeta, kDx, kCount };
  if (Status status = check_stem_backward<T>(call, kCount, stride)) {
    return status;
  }
  const Stem stem(call, At::kX, At::kWeight, stride);
  if (!same_shape(call, At::kX, kDx) || !call.are_channels({{kDGamma, kDx}}, stem.outputs)) {
    return kBadShape;
  }
  Arena arena;
  const NormGradient norm(arena, stem.outputs, stem.outputs, call.data(At::kGamma),
                          call.data(At::kBeta), call.data(At::kStatistics));
  for (int64_t o = 0; o < stem.outputs; ++o) {
    norm.finish(o, call.data(kDBeta)[o], call.data(kDGamma)[o] / norm.inverse[o],
                static_cast<double>(stem.pixels()));
  }
  const T *s = call.data<T>(At::kS), *dy = call.data<T>(At::kDy);
  const float ceiling = call.data(At::kOptions)[Options::kCeiling];
  return parallel(stem.n, 1, [&](int64_t n, int64_t) {
    const int64_t rows = stem.padded_h(), columns = stem.padded_w(), pad = stem.kernel / 2;
    float *padded = zeroed(Slot::kPlanes, stem.channels * rows * columns);
    for (int64_t i = 0; i < stem.plane(); ++i) {
      for (int64_t g = 0; g < stem.groups(); ++g) {
        float gradient[kGroup];
        store_channels(gradient,
                       stem_gradient(stem, norm, ceiling, s, dy, n * stem.plane() + i, g));
        for (int64_t j = 0; j < group_size(stem.outputs, g); ++j) {
          stem.input_gradient(padded, i, g * kGroup + j, gradient[j]);
        }
      }
    }
    for (int64_t c = 0; c < stem.channels; ++c) {
      for (int64_t y = 0; y < stem.h; ++y) {
        std::memcpy(call.data(kDx) + ((n * stem.channels + c) * stem.h + y) * stem.w,
                    padded + (c * rows + y + pad) * columns + pad, stem.w * sizeof(float));
      }
    }
  });
}

}  // namespace spnas
