// An MBConv block forward.
//
// Between expansion and projection lie the largest tensors of the network. A task takes one sample
// and one group of channels through expansion, normalisation, ReLU and depthwise convolution, plane
// by plane in cache; only the result z of the convolution is written. The statistics of the first
// normalisation are known before, from the moments of x.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "arena.h"
#include "block_call.h"
#include "channel_sums.h"
#include "input_moments.h"
#include "norm_call.h"
#include "panels.h"
#include "planes.h"
#include "products.h"
#include "scratch.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

// Pixels of the planes that a task works on at a time; with the gradients of both sides of a
// convolution they stay in the second-level cache. Next to tensors of bfloat16 there is room for
// more, so that fewer rows around them are computed twice.
template <typename T>
constexpr int64_t kBandPixels = std::is_same_v<T, float> ? 896 : 1792;

// Some rows of a plane, which are planes of their own but for the rows around them.
struct Band {
  int64_t first_row, first_out_row;
  Planes planes;
};

// The steps of a block up to z. What forward computes, backward computes again. T is the type of x.
template <typename T>
class Hidden {
 public:
  Hidden(const Call &call, const BlockPlaces &at, const Block &b, const Affine &norm, Arena &arena)
      : b_(b), x_(call.data<T>(at.x)), norm_(norm), taps_(b.side * b.side),
        out_rows_(choose_rows(b)) {
    const float *kernels = call.data(at.depthwise);
    kernels_ = pack_panels(arena, b.active, taps_, [&](int64_t t, int64_t e) {
      return kernels[e * b.kernel * b.kernel + b.tap(t)];
    });
    const int64_t rows = std::min(b.h, out_rows_ * b.stride + 2 * (b.side / 2));
    places_.resize(rows * b.w);
    for (int64_t i = 0; i < rows * b.w; ++i) {
      places_[i] = static_cast<int>(i / b.w * band(0).planes.pitch + i % b.w * kGroup);
    }
    for (int64_t i = 0; i < bands(); ++i) {
      for (int64_t rest = band(i).planes.out_pixels(); rest > 0; rest -= kSumPixels) {
        parts_.push_back(std::min(kSumPixels, rest));
      }
    }
    if (b.expands) {
      const float *weight = call.data(at.expand);
      panels_ = pack_panels<T>(arena, b.active, b.channels, [&](int64_t k, int64_t e) {
        return weight[e * b.channels + k] * norm.scale[e];
      });
    }
  }

  int64_t bands() const { return divide_up(b_.out_h, out_rows_); }
  Band band(int64_t i) const {
    const int64_t out_row = i * out_rows_, row = out_row * b_.stride;
    const int64_t rows = std::min(b_.h - row, out_rows_ * b_.stride);
    return {row, out_row, Planes(rows, b_.w, b_.side, b_.stride)};
  }
  // Pixels of the parts of an output plane that have sums of their own.
  const std::vector<int64_t> &parts() const { return parts_; }
  const float *kernel(int64_t g) const { return kernels_ + g * taps_ * kGroup; }

  // e of one sample and group, as a padded plane, with the rows around the band.
  void expand(float *plane, const Band &band, int64_t sample, int64_t g) const {
    const Planes &planes = band.planes;
    const int64_t first = std::max<int64_t>(0, band.first_row - planes.pad);
    const int64_t last = std::min(b_.h, band.first_row + planes.height + planes.pad);
    planes.clear_border(
        plane, [&](int64_t y) { return band.first_row + y >= first && band.first_row + y < last; });
    const T *x = x_ + (sample * b_.h + first) * b_.w * b_.channels;
    float *out = plane + planes.at(first - band.first_row, 0);
    const int64_t pixels = (last - first) * b_.w;
    if (!b_.expands) {
      for (int64_t i = 0; i < pixels; ++i) {
        store_channels(out + places_[i], load_part<kVecs>(x + i * b_.channels + g * kGroup,
                                                          group_size(b_.active, g)));
      }
      return;
    }
    const Channels<kVecs> shift = load_channels(norm_.shift + g * kGroup);
    const int *places = places_.data();
    product<kVecs, T>(
        pixels, {x, b_.channels, b_.channels}, panels_ + g * panel_size<T>(b_.channels),
        [&](int64_t) { return shift; },
        [&](int64_t i, const Channels<kVecs> &e) { store_channels(out + places[i], relu(e)); });
  }

 private:
  static int64_t choose_rows(const Block &b) {
    const int64_t rows = std::max<int64_t>(1, kBandPixels<T> / b.w / b.stride);
    return divide_up(b.out_h, divide_up(b.out_h, rows));  // bands of about equal size
  }

  const Block &b_;
  const T *x_;
  const Affine norm_;
  const int64_t taps_, out_rows_;
  std::vector<int> places_;  // of pixels in a padded plane, from the first one on
  std::vector<int64_t> parts_;
  const float *kernels_;
  const T *panels_ = nullptr;
};

// z (groups, pixels, 16) of some samples, which have `pixels` together. `sums` is null or has the
// parts of every sample, (groups, samples * parts, 2, 16).
template <typename T>
inline Status convolve(const Hidden<T> &hidden, const Block &b, T *z, int64_t first_sample,
                       int64_t samples, float *sums) {
  const int64_t plane = b.out_h * b.out_w, parts = static_cast<int64_t>(hidden.parts().size());
  return parallel(samples * b.active_groups(), 1, [&](int64_t task, int64_t) {
    const int64_t n = task / b.active_groups(), g = task % b.active_groups();
    T *out = z + (g * samples + n) * plane * kGroup;
    float *sum = sums == nullptr ? nullptr : sums + (g * samples + n) * parts * 2 * kGroup;
    for (int64_t i = 0; i < hidden.bands(); ++i) {
      const Band band = hidden.band(i);
      float *padded = scratch(Slot::kPlanes, band.planes.size);
      T *rows = out + band.first_out_row * b.out_w * kGroup;
      hidden.expand(padded, band, first_sample + n, g);
      band.planes.forward(padded, hidden.kernel(g), [&](int64_t i, int v, Vec sum) {
        store(rows + i * kGroup + v * kLanes, sum);
      });
      for (int64_t pixel = 0; sums != nullptr && pixel < band.planes.out_pixels();
           pixel += kSumPixels, sum += 2 * kGroup) {
        part_sums<kVecs>(sum, rows + pixel * kGroup, kGroup, kGroup,
                         std::min(kSumPixels, band.planes.out_pixels() - pixel));
      }
    }
  });
}

// The projection of relu(norm(z)).
template <typename T>
class Projection {
 public:
  // Rows of the weight multiplied by `scale`.
  Projection(const Block &b, const float *weight, const Affine &norm, const float *scale,
             Arena &arena)
      : b_(b), norm_(norm), tile_(tile_pixels(b.active_groups() * kGroup)),
        depth_(b.active_groups() * kGroup),
        panels_(pack_panels<T>(arena, b.out_channels, depth_, [&](int64_t e, int64_t o) {
          const float factor = scale == nullptr ? 1 : scale[o];
          return e < b.active ? weight[o * b.mid + e] * factor : 0;
        })) {}

  // Pixels of a task.
  int64_t tile() const { return tile_; }

  // out(pixel, j, count, channels) for all pixels and every 16 of the output's channels, which
  // begin with first(pixel, j, count, Vectors); after(task, first pixel, pixels) when a task is
  // complete. z is (groups, pixels, 16).
  template <typename First, typename Out, typename After>
  Status run(const T *z, int64_t pixels, const First &first, const Out &out,
             const After &after) const {
    return parallel(pixels, tile_, [&](int64_t begin, int64_t end) {
      const int64_t now = end - begin;
      T *hidden = scratch<T>(Slot::kTile, depth_ * tile_);
      for (int64_t g = 0; g < b_.active_groups(); ++g) {
        activate(hidden + g * now * kGroup, z + (g * pixels + begin) * kGroup, now, g);
      }
      const Left<T> left{hidden, kGroup, kGroup, b_.active_groups(), now * kGroup};
      for_panels(b_.out_channels, [&](int64_t j, int64_t count, auto vectors) {
        constexpr int kV = decltype(vectors)::value;
        product<kV>(
            now, left, panels_ + j * depth_,
            [&](int64_t i) { return first(begin + i, j, count, vectors); },
            [&](int64_t i, const Channels<kV> &sum) { out(begin + i, j, count, sum); });
      });
      after(begin / tile_, begin, now);
    });
  }

 private:
  void activate(T *h, const T *z, int64_t pixels, int64_t g) const {
    const Channels<kVecs> scale = load_channels(norm_.scale + g * kGroup);
    const Channels<kVecs> shift = load_channels(norm_.shift + g * kGroup);
    for (int64_t i = 0; i < pixels; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const Vec value = load(z + i * kGroup + v * kLanes) * scale.v[v] + shift.v[v];
        store(h + i * kGroup + v * kLanes, relu(value));
      }
    }
  }

  const Block &b_;
  const Affine norm_;
  const int64_t tile_, depth_;
  const T *panels_;
};

// Mean and variance of the expansion's outputs, from the moments of x; also weight * covariance,
// (mid, channels), which backward needs.
template <typename T>
inline Status expansion_statistics(Arena &arena, const Block &b, const T *x, const float *weight,
                                   const TrainNorm &norm, const Affine &affine, float *input_mean,
                                   float *spread) {
  const Covariance covariance{arena.take(Covariance::size(b.channels)), b.channels};
  if (Status status = find_moments(arena, input_mean, covariance, x, b.pixels())) {
    return status;
  }
  constexpr int64_t kRows = 48;
  return parallel(b.active, kRows, [&](int64_t first, int64_t last) {
    const float *rows = weight + first * b.channels;
    float *out = spread + first * b.channels;
    for_panels(b.channels, [&](int64_t j, int64_t count, auto vectors) {
      constexpr int kV = decltype(vectors)::value;
      product<kV, float>(
          last - first, {rows, b.channels, b.channels}, covariance.panel(j),
          [](int64_t) { return Channels<kV>{}; },
          [&](int64_t i, const Channels<kV> &sum) {
            store_part(out + i * b.channels + j, sum, count);
          });
    });
    for (int64_t e = first; e < last; ++e) {
      double sum = 0, variance = 0;
      for (int64_t c = 0; c < b.channels; ++c) {
        sum += static_cast<double>(weight[e * b.channels + c]) * input_mean[c];
        variance += static_cast<double>(weight[e * b.channels + c]) * spread[e * b.channels + c];
      }
      norm.use(e, sum, std::max(variance, 0.0), static_cast<double>(b.pixels()), affine);
    }
  });
}

// The outputs of a block in training.
struct BlockTrainPlaces {
  BlockPlaces in;
  int options, decision, y, z, projected, input_mean, spread, wide, narrow, moving, count;

  explicit BlockTrainPlaces(bool expands)
      : in(expands, NormInputs::kCount, NormInputs::kCount), options(in.after),
        decision(options + 1), y(decision + 1), z(y + 1), projected(z + 1),
        input_mean(projected + 1), spread(input_mean + 1), wide(expands ? spread + 1 : input_mean),
        narrow(wide + 1), moving(narrow + 1), count(moving + (expands ? 6 : 4)) {}
};

template <typename T>
inline Status check_block_train(const Call &call, const BlockTrainPlaces &at, int stride,
                                Block &b) {
  if (Status status = call.check<T>(at.count, {at.in.x, at.y, at.z, at.projected})) {
    return status;
  }
  if (Status status = read_block(call, at.in, stride, at.options, at.decision, b)) {
    return status;
  }
  const int next_moving = at.moving + (b.expands ? 2 : 0), last_moving = next_moving + 2;
  const bool fits =
      fits_saved(call, at, b) && same_shape(call, at.projected, at.y) &&
      (!b.expands || call.are_channels({{at.in.norm, at.in.depthwise}}, b.mid)) &&
      call.are_channels({{at.in.next_norm, at.in.project}, {at.moving, last_moving}}, b.mid) &&
      call.are_channels({{at.in.last_norm, at.in.after}, {last_moving, at.count}}, b.out_channels);
  return fits ? kOk : kBadShape;
}

// T is the type of x, y, z and the projection's output.
template <typename T>
Status block_train(const Call &call, bool expands, int stride) {
  const BlockTrainPlaces at(expands);
  Block b;
  if (Status status = check_block_train<T>(call, at, stride, b)) {
    return status;
  }
  const T *x = call.data<T>(at.in.x);
  T *y = call.data<T>(at.y);
  float *wide = call.data(at.wide), *narrow = call.data(at.narrow);
  const auto norm_at = [&](int input, float *rows, int64_t channels, int output) {
    const TrainNorm norm(call, input, at.options, rows, channels, output);
    norm.keep(channels);
    return norm;
  };
  const int after_first = at.moving + (expands ? 2 : 0);
  const TrainNorm next_norm =
      norm_at(at.in.next_norm, wide + WideRows::kNext * b.mid, b.mid, after_first);
  const TrainNorm last_norm = norm_at(at.in.last_norm, narrow, b.out_channels, after_first + 2);
  const TrainNorm first_norm =
      expands ? norm_at(at.in.norm, wide + WideRows::kFirst * b.mid, b.mid, at.moving) : next_norm;
  if (!b.present) {
    return parallel(b.inputs(), kGrain, [&](int64_t first, int64_t last) {
      std::memcpy(y + first, x + first, (last - first) * sizeof(T));
    });
  }
  Arena arena;
  T *z = call.data<T>(at.z);
  const Affine norm(arena, b.mid), next(arena, b.mid), last(arena, b.out_channels);
  Status status = kOk;
  if (expands) {
    status = expansion_statistics(arena, b, x, call.data(at.in.expand), first_norm, norm,
                                  call.data(at.input_mean), call.data(at.spread));
  }
  if (status) {
    return status;
  }
  const Hidden<T> hidden(call, at.in, b, norm, arena);
  const int64_t parts = static_cast<int64_t>(hidden.parts().size());
  float *sums = arena.take(b.active_groups() * b.n * parts * 2 * kGroup);
  if ((status = convolve(hidden, b, z, 0, b.n, sums))) {
    return status;
  }
  const auto pixels = [&](int64_t i) { return hidden.parts()[i % parts]; };
  if ((status = next_norm.use_parts(b.active, b.n * parts, sums, pixels, next))) {
    return status;
  }
  const Projection<T> projection(b, call.data(at.in.project), next, /*scale=*/nullptr, arena);
  T *projected = call.data<T>(at.projected);
  const int64_t out = b.out_channels, tile = projection.tile();
  const int64_t tiles = divide_up(b.out_pixels(), tile);
  float *last_sums = arena.take(group_count(out) * tiles * 2 * kGroup);
  status = projection.run(
      z, b.out_pixels(),
      [](int64_t, int64_t, int64_t, auto vectors) { return Channels<decltype(vectors)::value>{}; },
      [&](int64_t i, int64_t j, int64_t count, const auto &sum) {
        store_part(projected + i * out + j, sum, count);
      },
      [&](int64_t task, int64_t first, int64_t now) {
        for_panels(out, [&](int64_t j, int64_t count, auto vectors) {
          part_sums<decltype(vectors)::value>(last_sums + (j / kGroup * tiles + task) * 2 * kGroup,
                                              projected + first * out + j, out, count, now);
        });
      });
  if (status) {
    return status;
  }
  status = last_norm.use_parts(
      out, tiles, last_sums, [&](int64_t i) { return std::min(tile, b.out_pixels() - i * tile); },
      last);
  if (status) {
    return status;
  }
  return parallel(
      b.out_pixels(), std::max<int64_t>(1, kGrain / out), [&](int64_t first, int64_t end) {
        for (int64_t i = first * out; i < end * out; i += out) {
          for_vectors(out, [&](int64_t c, int64_t lanes) {
            Vec value =
                load_lanes(projected + i + c, lanes) * load(last.scale + c) + load(last.shift + c);
            if (b.residual) {
              value += load_lanes(x + i + c, lanes);
            }
            store_lanes(y + i + c, value, lanes);
          });
        }
      });
}

// Forward with given factors and shifts: x, weights, options, decision -> y.
inline Status run_block(const Call &call, const BlockPlaces &at, const Block &b, const Affine &norm,
                        const Affine &next, const Affine &last, Arena &arena, float *y) {
  const float *x = call.data(at.x);
  const Hidden<float> hidden(call, at, b, norm, arena);
  const Projection<float> projection(b, call.data(at.project), next, last.scale, arena);
  const int64_t plane = b.out_h * b.out_w, out = b.out_channels;
  const int64_t depth = b.active_groups() * kGroup;
  // Samples whose z stays in cache until it is projected.
  constexpr int64_t kKeptFloats = 1 << 18;
  const int64_t together =
      std::clamp<int64_t>(kKeptFloats / (depth * plane), std::min<int64_t>(2, b.n), b.n);
  float *z = arena.take(depth * together * plane);
  for (int64_t n = 0; n < b.n; n += together) {
    const int64_t now = std::min(together, b.n - n), first = n * plane;
    if (Status status = convolve(hidden, b, z, n, now, /*sums=*/nullptr)) {
      return status;
    }
    const Status status = projection.run(
        z, now * plane,
        [&](int64_t i, int64_t j, int64_t count, auto vectors) {
          constexpr int kV = decltype(vectors)::value;
          Channels<kV> start = load_channels<kV>(last.shift + j);
          if (b.residual) {
            const Channels<kV> other = load_part<kV>(x + (first + i) * out + j, count);
            for (int v = 0; v < kV; ++v) {
              start.v[v] += other.v[v];
            }
          }
          return start;
        },
        [&](int64_t i, int64_t j, int64_t count, const auto &sum) {
          store_part(y + (first + i) * out + j, sum, count);
        },
        [](int64_t, int64_t, int64_t) {});
    if (status) {
      return status;
    }
  }
  return kOk;
}

}  // namespace spnas
