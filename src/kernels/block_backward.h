// An MBConv block backward.
//
// The gradient of a normalisation (norm_call.h) contains the sums of g, the gradient behind its
// ReLU, 0 where that was not active, and of g times its input. They run over all samples, so a pass
// over the data ends at each normalisation:
//
//  1. the sums of the last normalisation;
//  2. dp, the gradient of the projection's output, from these; with it the gradient of the
//     projection's weight, and g of the second normalisation with its sums, kept until the next
//     pass;
//  3. dz from these; with it the kernel's gradient, and g of the first normalisation, which is
//     needed only within this pass: what depends on its sums is linear, and follows afterwards.
//
// With w the expansion's weight, G = sum g x^T and C the covariance of x, the gradient of w is
//
//     dw = scale * (G - sum g * mean x - n slope * w C),
//
// and that of x, with A = diag(scale) w, is a product of g and one of x itself:
//
//     dx = A^T g - A^T mean g - A^T diag(slope) w (x - mean x).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "arena.h"
#include "block_call.h"
#include "block_forward.h"
#include "channel_sums.h"
#include "norm_call.h"
#include "pairs.h"
#include "panels.h"
#include "planes.h"
#include "products.h"
#include "scratch.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

struct BlockBackwardPlaces {
  enum { kPerNorm = 2, kPerLastNorm = 1 };
  BlockPlaces in;
  int z, projected, input_mean, spread, wide, narrow, options, decision, dy;
  int dx, dexpand, dnorm, ddepthwise, dnext_norm, dproject, dlast_norm, count;

  explicit BlockBackwardPlaces(bool expands)
      : in(expands, kPerNorm, kPerLastNorm), z(in.after), projected(z + 1),
        input_mean(projected + 1), spread(input_mean + 1), wide(expands ? spread + 1 : input_mean),
        narrow(wide + 1), options(narrow + 1), decision(options + 1), dy(decision + 1), dx(dy + 1),
        dexpand(dx + 1), dnorm(dexpand + 1), ddepthwise(expands ? dnorm + 2 : dexpand),
        dnext_norm(ddepthwise + 1), dproject(dnext_norm + 2), dlast_norm(dproject + 1),
        count(dlast_norm + 2) {}
};

template <typename T>
inline Status check_block_backward(const Call &call, const BlockBackwardPlaces &at, int stride,
                                   Block &b) {
  if (Status status = call.check<T>(at.count, {at.in.x, at.z, at.projected, at.dy, at.dx})) {
    return status;
  }
  if (Status status = read_block(call, at.in, stride, at.options, at.decision, b)) {
    return status;
  }
  const bool fits =
      fits_saved(call, at, b) && same_shape(call, at.projected, at.dy) &&
      (!b.expands ||
       (call.are_channels({{at.in.norm, at.in.depthwise}, {at.dnorm, at.ddepthwise}}, b.mid) &&
        same_shape(call, at.in.expand, at.dexpand))) &&
      call.are_channels({{at.in.next_norm, at.in.project}, {at.dnext_norm, at.dproject}}, b.mid) &&
      call.are_channels({{at.in.last_norm, at.in.after}, {at.dlast_norm, at.count}},
                        b.out_channels) &&
      same_shape(call, at.in.x, at.dx) && same_shape(call, at.in.depthwise, at.ddepthwise) &&
      same_shape(call, at.in.project, at.dproject);
  return fits ? kOk : kBadShape;
}

// Up to so many channels of y it takes less time to compute g of the second normalisation again in
// pass 3 than to store and read it, which for bfloat16 are half as many bytes.
template <typename T>
constexpr int64_t kNarrowChannels = std::is_same_v<T, float> ? 48 : 16;

// T is the type of x, y, z, the projection's output, and their gradients.
template <typename T>
class BlockBackward {
 public:
  BlockBackward(const Call &call, const BlockBackwardPlaces &at, const Block &b, Arena &arena)
      : call_(call), at_(at), b_(b), arena_(arena), groups_(b.active_groups()),
        last_(arena, b.out_channels, b.out_channels, call.data(at.in.last_norm),
              /*beta=*/nullptr, call.data(at.narrow)),
        next_(arena, b.mid, b.active, call.data(at.in.next_norm), call.data(at.in.next_norm + 1),
              call.data(at.wide) + WideRows::kNext * b.mid),
        x_(call.data<T>(at.in.x)), dy_(call.data<T>(at.dy)), z_(call.data<T>(at.z)),
        projected_(call.data<T>(at.projected)), dx_(call.data<T>(at.dx)),
        panels_(pack_panels<T>(
            arena, b.active, b.out_channels,
            [&](int64_t o, int64_t e) { return call.data(at.in.project)[o * b.mid + e]; })),
        g_(b.out_channels <= kNarrowChannels<T>
               ? nullptr
               : arena.take<T>(groups_ * b.out_pixels() * kGroup)) {}

  Status run() {
    if (Status status = sum_last_norm()) {
      return status;
    }
    if (Status status = project()) {
      return status;
    }
    Affine affine(arena_, b_.mid);
    if (!b_.expands) {
      return convolve(affine, /*first=*/nullptr);
    }
    const NormGradient first(arena_, b_.mid, b_.active, call_.data(at_.in.norm),
                             call_.data(at_.in.norm + 1),
                             call_.data(at_.wide) + WideRows::kFirst * b_.mid);
    affine.scale = first.scale, affine.shift = first.shift;
    return convolve(affine, &first);
  }

 private:
  Status sum_last_norm() {
    const int64_t channels = b_.out_channels, pixels = b_.out_pixels();
    const int64_t parts = divide_up(pixels, kSumPixels);
    float *sums = arena_.take(parts * 2 * channels);
    const Status status = parallel(pixels, kSumPixels, [&](int64_t first, int64_t last) {
      float *gradients = sums + first / kSumPixels * 2 * channels, *products = gradients + channels;
      for_vectors(channels, [&](int64_t c, int64_t lanes) {
        const Vec mean = load(last_.mean + c);
        const T *dy = dy_ + first * channels + c, *p = projected_ + first * channels + c;
        const Channels<2> both = add_up<2, T>(last - first, [&](int64_t i) {
          const Vec gradient = load_lanes(dy + i * channels, lanes);
          return Channels<2>{gradient, gradient * (load_lanes(p + i * channels, lanes) - mean)};
        });
        store_lanes(gradients + c, both.v[0], lanes);
        store_lanes(products + c, both.v[1], lanes);
      });
    });
    for (int64_t c = 0; c < channels; ++c) {
      double first = 0, second = 0;
      for (int64_t i = 0; i < parts; ++i) {
        first += sums[i * 2 * channels + c];
        second += sums[(i * 2 + 1) * channels + c];
      }
      last_.finish(c, first, second, static_cast<double>(pixels), call_.data(at_.dlast_norm),
                   call_.data(at_.dlast_norm + 1));
    }
    return status;
  }

  // Pass 2.
  Status project() {
    const int64_t out = b_.out_channels, pixels = b_.out_pixels();
    const int64_t parts = range_count(pixels), size = groups_ * out * kGroup;
    float *products = arena_.take(parts * size);
    double *sums = reinterpret_cast<double *>(arena_.take(2 * parts * groups_ * 2 * kGroup));
    Status status = parallel(parts, 1, [&](int64_t part, int64_t) {
      float *product = products + part * size;
      double *sum = sums + part * groups_ * 2 * kGroup;
      std::memset(product, 0, size * sizeof(float));
      std::fill(sum, sum + groups_ * 2 * kGroup, 0.0);
      const int64_t last = range_begin(pixels, part + 1, parts);
      const int64_t tile = tile_pixels(out);
      for (int64_t i = range_begin(pixels, part, parts); i < last; i += tile) {
        project_tile(i, std::min(tile, last - i), product, sum);
      }
    });
    if (status) {
      return status;
    }
    float *dgamma = call_.data(at_.dnext_norm), *dbeta = call_.data(at_.dnext_norm + 1);
    std::memset(dgamma, 0, b_.mid * sizeof(float));
    std::memset(dbeta, 0, b_.mid * sizeof(float));
    for (int64_t c = 0; c < b_.active; ++c) {
      double first = 0, second = 0;
      for (int64_t part = 0; part < parts; ++part) {
        const double *sum = sums + (part * groups_ + c / kGroup) * 2 * kGroup + c % kGroup;
        first += sum[0];
        second += sum[kGroup];
      }
      next_.finish(c, first, second, static_cast<double>(pixels), dgamma, dbeta);
    }
    float *dweight = call_.data(at_.dproject);
    std::memset(dweight, 0, out * b_.mid * sizeof(float));
    return parallel(groups_, 1, [&](int64_t g, int64_t) {
      const float *total = add_parts(products + g * out * kGroup, parts, size, out * kGroup);
      for (int64_t o = 0; o < out; ++o) {
        std::memcpy(dweight + o * b_.mid + g * kGroup, total + o * kGroup,
                    group_size(b_.active, g) * sizeof(float));
      }
    });
  }

  // dp (pixels, out_channels).
  void find_dp(T *dp, int64_t first, int64_t pixels) const {
    const int64_t out = b_.out_channels;
    const T *dy = dy_ + first * out, *p = projected_ + first * out;
    for (int64_t i = 0; i < pixels * out; i += out) {
      for_vectors(out, [&](int64_t c, int64_t lanes) {
        const Vec start =
            load(last_.in_factor + c) * load_lanes(p + i + c, lanes) + load(last_.constant + c);
        store_lanes(dp + i + c, load(last_.scale + c) * load_lanes(dy + i + c, lanes) + start,
                    lanes);
      });
    }
  }

  void project_tile(int64_t first, int64_t now, float *product, double *sum) const {
    const int64_t out = b_.out_channels, pixels = b_.out_pixels();
    T *dp = scratch<T>(Slot::kOther, tile_pixels(out) * out);
    T *hidden = scratch<T>(Slot::kTile, kSumPixels * kGroup);
    find_dp(dp, first, now);
    const T *pairs = pair_pixels(dp, out, now);
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t at = g * kGroup;
      const Channels<kVecs> scale = load_channels(next_.scale + at);
      const Channels<kVecs> shift = load_channels(next_.shift + at);
      const Channels<kVecs> mean = load_channels(next_.mean + at);
      const T *z = z_ + (g * pixels + first) * kGroup;
      T *g_out = g_ == nullptr ? nullptr : g_ + (g * pixels + first) * kGroup;
      Vec gradients[kVecs] = {}, products[kVecs] = {};
      spnas::product<kVecs, T>(
          now, {dp, out, out}, panels_ + g * panel_size<T>(out),
          [](int64_t) { return Channels<kVecs>{}; },
          [&](int64_t i, const Channels<kVecs> &dh) {
#pragma GCC unroll 4
            for (int v = 0; v < kVecs; ++v) {
              const Vec in = load(z + i * kGroup + v * kLanes);
              const Vec h = in * scale.v[v] + shift.v[v];
              const Vec gradient = h > 0 ? dh.v[v] : Vec{};
              store(hidden + i * kGroup + v * kLanes, h > 0 ? h : Vec{});
              if (g_out != nullptr) {
                store(g_out + i * kGroup + v * kLanes, gradient);
              }
              gradients[v] += gradient;
              products[v] += gradient * (in - mean.v[v]);
            }
          });
      outer<kVecs>(product + g * out * kGroup, out, pairs, out, hidden, kGroup, now);
      add_channels(sum + g * 2 * kGroup, gradients);
      add_channels(sum + g * 2 * kGroup + kGroup, products);
    }
  }

  // What a range of samples adds up in pass 3.
  struct Sums {
    float *kernels;     // (groups, taps, 16)
    float *products;    // (groups, channels, 16): sum of x * g
    double *gradients;  // (groups, 16)
  };

  // Pass 3; `first` is null without expansion.
  Status convolve(const Affine &affine, const NormGradient *first) {
    const Hidden<T> hidden(call_, at_.in, b_, affine, arena_);
    const int64_t parts = std::min(kMaxRanges, b_.n), taps = b_.side * b_.side;
    const Planes planes = hidden.band(0).planes;
    float *flipped = arena_.take(groups_ * taps * kGroup);
    for (int64_t g = 0; g < groups_; ++g) {
      planes.flip(flipped + g * taps * kGroup, hidden.kernel(g));
    }
    const T *panels = nullptr;  // A
    if (first != nullptr) {
      const float *weight = call_.data(at_.in.expand);
      panels = pack_panels<T>(arena_, b_.channels, groups_ * kGroup, [&](int64_t e, int64_t c) {
        return e < b_.active ? weight[e * b_.channels + c] * first->scale[e] : 0;
      });
    }
    const int64_t kernel_size = groups_ * taps * kGroup;
    const int64_t product_size = first == nullptr ? 0 : groups_ * b_.channels * kGroup;
    float *kernels = arena_.take(parts * kernel_size);
    float *products = arena_.take(parts * product_size);
    double *gradients = reinterpret_cast<double *>(arena_.take(2 * parts * groups_ * kGroup));
    const Status status = parallel(parts, 1, [&](int64_t part, int64_t) {
      const Sums sums{kernels + part * kernel_size, products + part * product_size,
                      gradients + part * groups_ * kGroup};
      std::memset(sums.kernels, 0, kernel_size * sizeof(float));
      std::memset(sums.products, 0, product_size * sizeof(float));
      std::fill(sums.gradients, sums.gradients + groups_ * kGroup, 0.0);
      const int64_t last = range_begin(b_.n, part + 1, parts);
      // Small planes go together, for longer sums between two readings of the totals.
      const int64_t together = std::max<int64_t>(1, kSumPixels / (b_.h * b_.w));
      for (int64_t n = range_begin(b_.n, part, parts); n < last; n += together) {
        for (int64_t band = 0; band < hidden.bands(); ++band) {
          convolve_samples(hidden, hidden.band(band), n, std::min(together, last - n), flipped,
                           panels, sums);
        }
      }
    });
    if (status) {
      return status;
    }
    if (const Status written = write_kernel(kernels, parts, taps)) {
      return written;
    }
    return first == nullptr ? add_residual()
                            : finish(*first, products, gradients, parts, product_size);
  }

  // A band of one sample, or whole planes of a few.
  void convolve_samples(const Hidden<T> &hidden, const Band &band, int64_t n, int64_t samples,
                        const float *flipped, const T *panels, const Sums &sums) const {
    const int64_t plane = band.planes.pixels(), pixels = samples * plane, channels = b_.channels;
    const int64_t first_pixel = (n * b_.h + band.first_row) * b_.w;
    const T *x = x_ + first_pixel * channels;
    T *dx = dx_ + first_pixel * channels;
    // Groups whose gradients go through the expansion together, as far as they stay in cache.
    constexpr int64_t kGroups = sizeof(float) / sizeof(T) * 4;
    const int64_t together = std::clamp<int64_t>(1024 * kGroups / pixels, 1, kGroups);
    const T *dp = g_ == nullptr ? find_dp(band, n, samples) : nullptr;
    const T *pairs = nullptr;
    float *partial = nullptr;  // sums of dx
    if (panels != nullptr) {
      pairs = pair_pixels(x, channels, pixels);
      partial = sums_of(dx, pixels * channels);
    }
    T *gradient = scratch<T>(Slot::kTile, together * pixels * kGroup);
    for (int64_t g = 0; g < groups_; ++g) {
      // Without expansion g is dx.
      const int64_t pitch = panels == nullptr ? channels : kGroup;
      T *tile = panels == nullptr ? dx + g * kGroup : gradient + g % together * pixels * kGroup;
      for (int64_t s = 0; s < samples; ++s) {
        convolve_plane(hidden, band, n + s, g,
                       dp == nullptr ? nullptr : dp + s * b_.out_h * b_.out_w * b_.out_channels,
                       flipped, tile + s * plane * pitch, pitch, sums);
      }
      if (panels == nullptr) {
        continue;
      }
      for (int64_t i = 0; i < pixels; i += kSumPixels) {
        const int64_t now = std::min(kSumPixels, pixels - i);
        add_gradients(sums.gradients + g * kGroup, tile + i * kGroup, now);
        outer<kVecs>(sums.products + g * channels * kGroup, channels, pairs + i * channels,
                     channels, tile + i * kGroup, kGroup, now);
      }
      const bool last = g == groups_ - 1;
      if (g % together == together - 1 || last) {
        const int64_t first = g / together * together;
        const Left<T> left{gradient, kGroup, kGroup, g - first + 1, pixels * kGroup};
        for_panels(channels, [&](int64_t j, int64_t columns, auto vectors) {
          constexpr int kV = decltype(vectors)::value;
          product<kV>(
              pixels, left, panels + j * groups_ * kGroup + first * kGroup * kGroup,
              [&](int64_t i) {
                return first == 0 ? Channels<kV>{}
                                  : load_part<kV>(partial + i * channels + j, columns);
              },
              [&](int64_t i, const Channels<kV> &sum) {
                if (last) {
                  store_part(dx + i * channels + j, sum, columns);
                } else {
                  store_part(partial + i * channels + j, sum, columns);
                }
              });
        });
      }
    }
  }

  // Where sums of dx are kept until they are complete: floats in dx itself.
  static float *sums_of(float *dx, int64_t) { return dx; }
  static float *sums_of(Bfloat16 *, int64_t size) { return scratch(Slot::kSums, size); }

  // g of the first normalisation, (pixels, pitch), of one sample and group; adds the kernel's
  // gradient.
  void convolve_plane(const Hidden<T> &hidden, const Band &band, int64_t sample, int64_t g,
                      const T *dp, const float *flipped, T *gradient, int64_t pitch,
                      const Sums &sums) const {
    const Planes &planes = band.planes;
    const int64_t taps = planes.taps * kGroup;
    float *plane = scratch(Slot::kPlanes, planes.size);
    float *dz = scratch(Slot::kGradients, planes.out_size);
    hidden.expand(plane, band, sample, g);
    find_dz(dz, band, sample, g, dp);
    planes.kernel_gradient(sums.kernels + g * taps, dz, plane);
    planes.input_gradient(dz, flipped + g * taps, [&](int64_t y, int64_t x, int v, Vec sum) {
      T *to = gradient + (y * planes.width + x) * pitch + v * kLanes;
      if (b_.expands) {
        const Vec e = load(plane + planes.at(y, x) + v * kLanes);
        store(to, e > 0 ? sum : Vec{});
      } else {  // no ReLU in front of the convolution
        store_lanes(to, sum, std::clamp<int64_t>(group_size(b_.active, g) - v * kLanes, 0, kLanes));
      }
    });
  }

  // Rows of an output plane that are needed for a band: its own and those around it.
  struct Rows {
    int64_t first, last;
  };
  Rows rows_of(const Band &band) const {
    return {std::max<int64_t>(0, band.first_out_row - band.planes.pad),
            std::min(b_.out_h, band.first_out_row + band.planes.out_height + band.planes.pad)};
  }

  // dp of these rows, of samples from n on; a sample's rows begin a whole plane after the last's.
  const T *find_dp(const Band &band, int64_t n, int64_t samples) const {
    const int64_t plane = b_.out_h * b_.out_w;
    const Rows rows = rows_of(band);
    T *dp = scratch<T>(Slot::kOther, samples * plane * b_.out_channels);
    for (int64_t s = 0; s < samples; ++s) {
      find_dp(dp + s * plane * b_.out_channels, (n + s) * plane + rows.first * b_.out_w,
              (rows.last - rows.first) * b_.out_w);
    }
    return dp;
  }

  // dz of one sample and group, as a padded plane, with the rows around the band. `dp` is null
  // where g has been kept.
  void find_dz(float *dz, const Band &band, int64_t sample, int64_t g, const T *dp) const {
    const Planes &planes = band.planes;
    const int64_t at = g * kGroup, out = b_.out_channels;
    const Channels<kVecs> scale = load_channels(next_.scale + at);
    const Channels<kVecs> shift = load_channels(next_.shift + at);
    const Channels<kVecs> factor = load_channels(next_.in_factor + at);
    const Channels<kVecs> constant = load_channels(next_.constant + at);
    const Rows rows = rows_of(band);
    planes.clear_out_border(dz, [&](int64_t y) {
      return band.first_out_row + y >= rows.first && band.first_out_row + y < rows.last;
    });
    for (int64_t y = rows.first; y < rows.last; ++y) {
      const int64_t pixel = ((g * b_.n + sample) * b_.out_h + y) * b_.out_w;
      const T *z = z_ + pixel * kGroup;
      float *row = dz + planes.out_at(y - band.first_out_row, 0);
      // The gradient of z from g, where the ReLU behind the normalisation was active.
      const auto set = [&](int64_t j, int v, Vec in, Vec gradient) {
        store(row + j, scale.v[v] * gradient + (factor.v[v] * in + constant.v[v]));
      };
      if (dp == nullptr) {
        for (int64_t i = 0; i < b_.out_w * kGroup; i += kGroup) {
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) {
            const int64_t j = i + v * kLanes;
            set(j, v, load(z + j), load(g_ + pixel * kGroup + j));
          }
        }
        continue;
      }
      spnas::product<kVecs, T>(
          b_.out_w, {dp + (y - rows.first) * b_.out_w * out, out, out},
          panels_ + g * panel_size<T>(out), [](int64_t) { return Channels<kVecs>{}; },
          [&](int64_t i, const Channels<kVecs> &dh) {
#pragma GCC unroll 4
            for (int v = 0; v < kVecs; ++v) {
              const int64_t j = i * kGroup + v * kLanes;
              const Vec in = load(z + j);
              set(j, v, in, in * scale.v[v] + shift.v[v] > 0 ? dh.v[v] : Vec{});
            }
          });
    }
  }

  static void add_gradients(double *total, const T *gradient, int64_t pixels) {
    const Channels<kVecs> sum =
        add_up<kVecs, T>(pixels, [&](int64_t i) { return load_channels(gradient + i * kGroup); });
    add_channels(total, sum.v);
  }

  Status write_kernel(const float *kernels, int64_t parts, int64_t taps) const {
    float *dweight = call_.data(at_.ddepthwise);
    const int64_t largest = b_.kernel * b_.kernel, size = taps * kGroup;
    std::memset(dweight, 0, b_.mid * largest * sizeof(float));
    return parallel(groups_, 1, [&](int64_t g, int64_t) {
      const float *total = add_parts(kernels + g * size, parts, groups_ * size, size);
      for (int64_t j = 0; j < group_size(b_.active, g); ++j) {
        for (int64_t t = 0; t < taps; ++t) {
          dweight[(g * kGroup + j) * largest + b_.tap(t)] = total[t * kGroup + j];
        }
      }
    });
  }

  // What of a block without expansion is still missing in dx.
  Status add_residual() const {
    if (!b_.residual) {
      return kOk;
    }
    return parallel(b_.inputs(), kGrain, [&](int64_t first, int64_t last) {
      for_vectors(last - first, [&](int64_t i, int64_t lanes) {
        const int64_t at = first + i;
        store_lanes(dx_ + at, load_lanes(dx_ + at, lanes) + load_lanes(dy_ + at, lanes), lanes);
      });
    });
  }

  // What depends on the sums of the first normalisation.
  Status finish(const NormGradient &first, const float *products, const double *gradients,
                int64_t parts, int64_t product_size) const {
    const int64_t channels = b_.channels, pixels = b_.pixels();
    const float *weight = call_.data(at_.in.expand), *input_mean = call_.data(at_.input_mean);
    const float *spread = call_.data(at_.spread);
    float *dweight = call_.data(at_.dexpand);
    float *dgamma = call_.data(at_.dnorm), *dbeta = call_.data(at_.dnorm + 1);
    std::memset(dweight, 0, b_.mid * channels * sizeof(float));
    std::memset(dgamma, 0, b_.mid * sizeof(float));
    std::memset(dbeta, 0, b_.mid * sizeof(float));
    const Status status = parallel(groups_, 1, [&](int64_t g, int64_t) {
      const float *total =
          add_parts(products + g * channels * kGroup, parts, product_size, channels * kGroup);
      for (int64_t j = 0; j < group_size(b_.active, g); ++j) {
        const int64_t e = g * kGroup + j;
        const float *w = weight + e * channels, *s = spread + e * channels;
        double sum = 0, second = 0;
        for (int64_t part = 0; part < parts; ++part) {
          sum += gradients[(part * groups_ + g) * kGroup + j];
        }
        for (int64_t k = 0; k < channels; ++k) {
          second += static_cast<double>(total[k * kGroup + j]) * w[k];
        }
        first.finish(e, sum, second - sum * first.mean[e], static_cast<double>(pixels), dgamma,
                     dbeta);
        const float slope = static_cast<float>(pixels) * first.slope[e];
        for (int64_t k = 0; k < channels; ++k) {
          dweight[e * channels + k] =
              first.scale[e] *
              (total[k * kGroup + j] - static_cast<float>(sum) * input_mean[k] - slope * s[k]);
        }
      }
    });
    return status ? status : correct_input_gradient(first, weight, input_mean);
  }

  // dx -= A^T mean g + A^T diag(slope) w (x - mean x), and += dy where there is a residual.
  Status correct_input_gradient(const NormGradient &first, const float *weight,
                                const float *input_mean) const {
    const int64_t channels = b_.channels, pitch = group_count(channels) * kGroup;
    // in_factor is -scale * slope.
    float *scaled = arena_.zeros(b_.active * pitch), *start = arena_.zeros(pitch);
    Status status = parallel(b_.active, kGroup, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; ++e) {
        for (int64_t c = 0; c < channels; ++c) {
          scaled[e * pitch + c] = weight[e * channels + c] * first.in_factor[e];
        }
      }
    });
    if (status) {
      return status;
    }
    for (int64_t e = 0; e < b_.active; ++e) {
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        start[c] -= weight[e * channels + c] * (first.scale[e] * first.mean_gradient[e]);
      }
    }
    float *panels = arena_.zeros(pitch * channels);
    status = parallel(group_count(channels), 1, [&](int64_t panel, int64_t) {
      float *sums = panels + panel * kGroup * channels;
      for (int64_t e = 0; e < b_.active; e += kSumPixels) {
        outer<kVecs>(sums, channels, weight + e * channels, channels,
                     scaled + e * pitch + panel * kGroup, pitch,
                     std::min(kSumPixels, b_.active - e));
      }
      for (int64_t k = 0; k < channels; ++k) {
        for (int64_t j = 0; j < kGroup; ++j) {
          start[panel * kGroup + j] -= sums[k * kGroup + j] * input_mean[k];
        }
      }
    });
    if (status) {
      return status;
    }
    const T *factors = as_factors(panels);
    return parallel(b_.pixels(), tile_pixels(channels), [&](int64_t begin, int64_t end) {
      const T *x = x_ + begin * channels, *dy = dy_ + begin * channels;
      T *dx = dx_ + begin * channels;
      for_panels(channels, [&](int64_t j, int64_t columns, auto vectors) {
        constexpr int kV = decltype(vectors)::value;
        const Channels<kV> constant = load_channels<kV>(start + j);
        product<kV, T>(
            end - begin, {x, channels, channels}, factors + j / kGroup * panel_size<T>(channels),
            [&](int64_t i) {
              Channels<kV> sum = load_part<kV>(dx + i * channels + j, columns);
              for (int v = 0; v < kV; ++v) {
                sum.v[v] += constant.v[v];
              }
              if (b_.residual) {
                const Channels<kV> other = load_part<kV>(dy + i * channels + j, columns);
                for (int v = 0; v < kV; ++v) {
                  sum.v[v] += other.v[v];
                }
              }
              return sum;
            },
            [&](int64_t i, const Channels<kV> &sum) {
              store_part(dx + i * channels + j, sum, columns);
            });
      });
    });
  }

  // Panels (channels, 16) of floats for every 16 channels, as products of T read them.
  const T *as_factors(float *panels) const {
    if constexpr (std::is_same_v<T, float>) {
      return panels;
    } else {
      return pack_panels<T>(arena_, b_.channels, b_.channels, [&](int64_t k, int64_t c) {
        return panels[c / kGroup * kGroup * b_.channels + k * kGroup + c % kGroup];
      });
    }
  }

  const Call &call_;
  const BlockBackwardPlaces &at_;
  const Block &b_;
  Arena &arena_;
  const int64_t groups_;
  const NormGradient last_, next_;
  const T *x_, *dy_, *z_, *projected_;
  T *dx_;
  const T *panels_;  // of the projection, for every 16 channels of h
  T *g_;             // of the second normalisation; null where it is computed again
};

template <typename T>
Status block_backward(const Call &call, bool expands, int stride) {
  const BlockBackwardPlaces at(expands);
  Block b;
  if (Status status = check_block_backward<T>(call, at, stride, b)) {
    return status;
  }
  if (!b.present) {
    for (int i = at.dx + 1; i < at.count; ++i) {
      std::memset(call.data(i), 0, call.size(i) * sizeof(float));
    }
    std::memcpy(call.data<T>(at.dx), call.data<T>(at.dy), b.inputs() * sizeof(T));
    return kOk;
  }
  Arena arena;
  return BlockBackward<T>(call, at, b, arena).run();
}

}  // namespace spnas
