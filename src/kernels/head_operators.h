// The head of a network as operators: 1x1 convolution, normalisation, ReLU, mean over the pixels.
// x is (N, H, W, C), the result (N, O), and the convolution's output q lies in groups of 16
// channels, (groups, pixels of all samples, 16). T is the type of x and q; results are float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "arena.h"
#include "call.h"
#include "channel_sums.h"
#include "end_call.h"
#include "norm_call.h"
#include "pairs.h"
#include "panels.h"
#include "products.h"
#include "scratch.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

template <typename T>
struct Head {
  int64_t n, plane, channels, outputs;
  const T *x;
  const float *weight;

  Head(const Call &call, int x, int weight)
      : n(call.shapes[x][0]), plane(call.shapes[x][1] * call.shapes[x][2]),
        channels(call.shapes[x][3]), outputs(call.shapes[weight][0]), x(call.data<T>(x)),
        weight(call.data(weight)) {}

  static bool fits(const Call &call, int x, int weight) {
    return call.ndims[x] == 4 && call.ndims[weight] == 4 && call.size(x) > 0 &&
           call.size(weight) > 0 &&
           call.is_shape(weight, {call.shapes[weight][0], call.shapes[x][3], 1, 1});
  }

  int64_t pixels() const { return n * plane; }
  int64_t groups() const { return group_count(outputs); }

  // q, and, unless `sums` is null, its sums (groups, parts of kSumPixels pixels, 2, 16).
  Status convolve(Arena &arena, T *q, float *sums) const {
    const T *panels = pack_panels<T>(
        arena, outputs, channels, [&](int64_t k, int64_t o) { return weight[o * channels + k]; });
    const int64_t parts = divide_up(pixels(), kSumPixels);
    return parallel(pixels(), kSumPixels, [&](int64_t first, int64_t last) {
      for (int64_t g = 0; g < groups(); ++g) {
        T *out = q + (g * pixels() + first) * kGroup;
        product<kVecs, T>(
            last - first, {x + first * channels, channels, channels},
            panels + g * panel_size<T>(channels), [](int64_t) { return Channels<kVecs>{}; },
            [&](int64_t i, const Channels<kVecs> &c) { store_channels(out + i * kGroup, c); });
        if (sums != nullptr) {
          part_sums<kVecs>(sums + (g * parts + first / kSumPixels) * 2 * kGroup, out, kGroup,
                           kGroup, last - first);
        }
      }
    });
  }

  Status pool(float *y, const T *q, const Affine &affine, float ceiling) const {
    return parallel(n, 1, [&](int64_t sample, int64_t) {
      for (int64_t g = 0; g < groups(); ++g) {
        const Channels<kVecs> scale = load_channels(affine.scale + g * kGroup);
        const Channels<kVecs> shift = load_channels(affine.shift + g * kGroup);
        const T *in = q + (g * pixels() + sample * plane) * kGroup;
        Channels<kVecs> sum = {};
        for (int64_t i = 0; i < plane; ++i) {
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) {
            const Vec value = load(in + i * kGroup + v * kLanes) * scale.v[v] + shift.v[v];
            sum.v[v] += relu(value, ceiling);
          }
        }
        for (int v = 0; v < kVecs; ++v) {
          sum.v[v] /= static_cast<float>(plane);
        }
        store_part(y + sample * outputs + g * kGroup, sum, group_size(outputs, g));
      }
    });
  }
};

// x, weight, normalisation, options -> y, q, statistics, new moving statistics
template <typename T>
Status head_train(const Call &call) {
  using At = EndTrainPlaces;
  if (Status status = call.check<T>(At::kCount, {At::kX, At::kConvolved})) {
    return status;
  }
  if (!Head<T>::fits(call, At::kX, At::kWeight)) {
    return kBadShape;
  }
  const Head<T> head(call, At::kX, At::kWeight);
  if (!At::fits(call, head.outputs, head.pixels()) ||
      !call.is_shape(At::kY, {head.n, head.outputs})) {
    return kBadShape;
  }
  Arena arena;
  const Affine affine(arena, head.outputs);
  T *q = call.data<T>(At::kConvolved);
  const TrainNorm norm(call, At::kNorm, At::kOptions, call.data(At::kStatistics), head.outputs,
                       At::kMoving);
  const int64_t parts = divide_up(head.pixels(), kSumPixels);
  float *sums = arena.take(head.groups() * parts * 2 * kGroup);
  if (Status status = head.convolve(arena, q, sums)) {
    return status;
  }
  const auto pixels = [&](int64_t i) {
    return std::min(kSumPixels, head.pixels() - i * kSumPixels);
  };
  if (Status status = norm.use_parts(head.outputs, parts, sums, pixels, affine)) {
    return status;
  }
  return head.pool(call.data(At::kY), q, affine, call.data(At::kOptions)[Options::kCeiling]);
}

// x, weight, normalisation, options -> y; folded: a bias in place of the normalisation.
inline Status head_infer(const Call &call, bool folded) {
  const EndInferPlaces at(folded);
  if (Status status = call.check(at.count)) {
    return status;
  }
  if (!Head<float>::fits(call, at.kX, at.kWeight)) {
    return kBadShape;
  }
  const Head<float> head(call, at.kX, at.kWeight);
  if (!at.fits(call, head.outputs) || !call.is_shape(at.y, {head.n, head.outputs})) {
    return kBadShape;
  }
  Arena arena;
  const Affine affine =
      moving_affine(call, at.kNorm, at.options, folded, head.outputs, head.outputs, arena);
  float *q = arena.take(head.groups() * head.pixels() * kGroup);
  if (Status status = head.convolve(arena, q, /*sums=*/nullptr)) {
    return status;
  }
  return head.pool(call.data(at.y), q, affine, call.data(at.options)[Options::kCeiling]);
}

// g of one group and the pixels from `first` on: dy / plane where ReLU was active.
template <typename T, typename Out>
inline void head_gradient(const Head<T> &head, const NormGradient &norm, float ceiling, const T *q,
                          const float *dy, int64_t first, int64_t pixels, int64_t g,
                          const Out &out) {
  const Channels<kVecs> scale = load_channels(norm.scale + g * kGroup);
  const Channels<kVecs> shift = load_channels(norm.shift + g * kGroup);
  const float part = 1 / static_cast<float>(head.plane);
  for (int64_t i = 0; i < pixels; ++i) {
    const int64_t sample = (first + i) / head.plane;
    const Channels<kVecs> gradient =
        load_part<kVecs>(dy + sample * head.outputs + g * kGroup, group_size(head.outputs, g));
    const T *in = q + (g * head.pixels() + first + i) * kGroup;
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const Vec value = load(in + v * kLanes);
      out(i, v, value,
          relu_gradient(value * scale.v[v] + shift.v[v], ceiling, gradient.v[v] * part));
    }
  }
}

// x, weight, gamma, beta, q, statistics, options, dy -> dx, dweight, dgamma, dbeta
template <typename T>
Status head_backward(const Call &call) {
  enum { kX, kWeight, kGamma, kBeta, kQ, kStatistics, kOptions, kDy };
  enum { kDx = kDy + 1, kDWeight, kDGamma, kDBeta, kCount };
  if (Status status = call.check<T>(kCount, {kX, kQ, kDx})) {
    return status;
  }
  if (!Head<T>::fits(call, kX, kWeight)) {
    return kBadShape;
  }
  const Head<T> head(call, kX, kWeight);
  if (!same_shape(call, kX, kDx) || !same_shape(call, kWeight, kDWeight) ||
      !call.is_shape(kQ, {head.groups(), head.pixels(), kGroup}) ||
      !call.is_shape(kStatistics, {StatisticsRows::kCount, head.outputs}) ||
      !call.is_shape(kOptions, {Options::kCount}) || !call.is_shape(kDy, {head.n, head.outputs}) ||
      !call.are_channels({{kGamma, kQ}, {kDGamma, kCount}}, head.outputs)) {
    return kBadShape;
  }
  Arena arena;
  const NormGradient norm(arena, head.outputs, head.outputs, call.data(kGamma), call.data(kBeta),
                          call.data(kStatistics));
  const T *q = call.data<T>(kQ);
  const float *dy = call.data(kDy);
  const float ceiling = call.data(kOptions)[Options::kCeiling];
  T *dx = call.data<T>(kDx);
  float *dweight = call.data(kDWeight);
  const int64_t channels = head.channels, pixels = head.pixels();
  // The gradient of q, of some pixels and one group.
  const auto find_dq = [&](T *dq, int64_t first, int64_t now, int64_t g) {
    const Channels<kVecs> scale = load_channels(norm.scale + g * kGroup);
    const Channels<kVecs> factor = load_channels(norm.in_factor + g * kGroup);
    const Channels<kVecs> constant = load_channels(norm.constant + g * kGroup);
    head_gradient(head, norm, ceiling, q, dy, first, now, g,
                  [&](int64_t i, int v, Vec value, Vec gradient) {
                    store(dq + i * kGroup + v * kLanes,
                          scale.v[v] * gradient + (factor.v[v] * value + constant.v[v]));
                  });
  };
  const T *pairs = pair_pixels(head.x, channels, pixels);
  Status status = parallel(head.groups(), 1, [&](int64_t g, int64_t) {
    const Channels<kVecs> mean = load_channels(norm.mean + g * kGroup);
    double sums[2][kGroup] = {};
    for (int64_t i = 0; i < pixels; i += kSumPixels) {
      Vec first[kVecs] = {}, second[kVecs] = {};
      head_gradient(head, norm, ceiling, q, dy, i, std::min(kSumPixels, pixels - i), g,
                    [&](int64_t, int v, Vec value, Vec gradient) {
                      first[v] += gradient;
                      second[v] += gradient * (value - mean.v[v]);
                    });
      add_channels(sums[0], first);
      add_channels(sums[1], second);
    }
    for (int64_t j = 0; j < group_size(head.outputs, g); ++j) {
      norm.finish(g * kGroup + j, sums[0][j], sums[1][j], static_cast<double>(pixels),
                  call.data(kDGamma), call.data(kDBeta));
    }
    float *product = zeroed(Slot::kOther, channels * kGroup);
    T *dq = scratch<T>(Slot::kTile, kSumPixels * kGroup);
    for (int64_t i = 0; i < pixels; i += kSumPixels) {
      const int64_t now = std::min(kSumPixels, pixels - i);
      find_dq(dq, i, now, g);
      outer<kVecs>(product, channels, pairs + i * channels, channels, dq, kGroup, now);
    }
    for (int64_t j = 0; j < group_size(head.outputs, g); ++j) {
      for (int64_t k = 0; k < channels; ++k) {
        dweight[(g * kGroup + j) * channels + k] = product[k * kGroup + j];
      }
    }
  });
  if (status) {
    return status;
  }
  const int64_t depth = head.groups() * kGroup, tile = tile_pixels(depth);
  const T *panels = pack_panels<T>(arena, channels, depth, [&](int64_t o, int64_t c) {
    return o < head.outputs ? head.weight[o * channels + c] : 0;
  });
  return parallel(pixels, tile, [&](int64_t first, int64_t last) {
    const int64_t now = last - first;
    T *dq = scratch<T>(Slot::kTile, tile * depth);
    for (int64_t g = 0; g < head.groups(); ++g) {
      find_dq(dq + g * now * kGroup, first, now, g);
    }
    for_panels(channels, [&](int64_t j, int64_t columns, auto vectors) {
      constexpr int kV = decltype(vectors)::value;
      product<kV, T>(
          now, {dq, kGroup, kGroup, head.groups(), now * kGroup}, panels + j * depth,
          [](int64_t) { return Channels<kV>{}; },
          [&](int64_t i, const Channels<kV> &sum) {
            store_part(dx + (first + i) * channels + j, sum, columns);
          });
    });
  });
}

}  // namespace spnas
