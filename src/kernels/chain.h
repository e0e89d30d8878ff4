// Convolutions one after the other, as in ShuffleNetV2 blocks: depthwise ones, which normalisation
// follows, and 1x1 ones, which normalisation and ReLU follow. Normalisation has no scale and shift.
//
// A convolution reads one tensor and writes one, z, which lies in groups of 16 channels, (groups,
// pixels of all samples, 16). Normalisation and ReLU are part of reading it. In the other direction
// a convolution reads g, the gradient behind the normalisation of its output, and writes that of
// its input; with the sums over all pixels that the next normalisation needs, see NormGradient.
//
// In the first direction factors of 1x1 convolutions may be bfloat16; all else is float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <variant>

#include "arena.h"
#include "bfloat16.h"
#include "channel_sums.h"
#include "norm_call.h"
#include "panels.h"
#include "planes.h"
#include "products.h"
#include "scratch.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

// The sizes of a convolution. Its weight is (out, in, 1, 1), or (out, 1, side, side) where it is
// depthwise.
struct ConvLayer {
  int64_t n, h, w, in, out, out_h, out_w;
  int side, stride;
  const float *weight;

  bool depthwise() const { return side > 1; }
  bool relu() const { return !depthwise(); }
  int64_t pixels() const { return n * h * w; }
  int64_t plane() const { return out_h * out_w; }
  int64_t out_pixels() const { return n * plane(); }
  int64_t groups() const { return group_count(in); }
  int64_t out_groups() const { return group_count(out); }
  int64_t output_size() const { return out_groups() * out_pixels() * kGroup; }

  // Parts of the output that have sums of their own, and their pixels. Those of a depthwise
  // convolution are parts of one sample.
  int64_t part_size() const {
    return depthwise() ? std::min(kSumPixels, plane()) : tile_pixels(groups() * kGroup);
  }
  int64_t parts_of(int64_t pixels) const { return divide_up(pixels, part_size()); }
  int64_t parts() const { return depthwise() ? n * parts_of(plane()) : parts_of(out_pixels()); }
  int64_t part_pixels(int64_t i) const {
    const int64_t pixels = depthwise() ? plane() : out_pixels();
    return std::min(part_size(), pixels - i % parts_of(pixels) * part_size());
  }
};

// Sums of g and of g * (z - mean) of 16 channels, which are added to these.
using GradientSums = double[2][kGroup];

// What the first convolution of a chain reads: the channels of x (pixels, channels) whose number is
// odd, or all of them.
struct Images {
  const float *x;
  int64_t channels;
  bool halves;
  // With `halves`: where channels of even number are copied to when they are read, as the first of
  // each pixel, or null; their gradients, as the first of each pixel.
  float *kept = nullptr;
  const float *kept_gradient = nullptr;
  int64_t kept_pitch = 0;
  float *dx = nullptr;
  bool add = false;  // to dx

  int64_t used(int64_t g) const { return group_size(halves ? channels / 2 : channels, g); }

  void read(float *out, int64_t pitch, int64_t first, int64_t count, int64_t g) const {
    const int64_t size = used(g);
    if (!halves) {
      const float *in = x + first * channels + g * kGroup;
      for (int64_t i = 0; i < count; ++i) {
        store_channels(out + i * pitch, load_part<kVecs>(in + i * channels, size));
      }
      return;
    }
    const float *in = x + first * channels + 2 * g * kGroup;
    float *even = kept == nullptr ? nullptr : kept + first * kept_pitch + g * kGroup;
    for (int64_t i = 0; i < count; ++i, in += channels, out += pitch) {
      float rest[kGroup] = {}, odd[kGroup] = {};
      if (size == kGroup) {
#pragma omp simd
        for (int j = 0; j < kGroup; ++j) {
          rest[j] = in[2 * j];
          odd[j] = in[2 * j + 1];
        }
      } else {
        for (int64_t j = 0; j < size; ++j) {
          rest[j] = in[2 * j];
          odd[j] = in[2 * j + 1];
        }
      }
      std::memcpy(out, odd, sizeof(odd));
      if (even != nullptr) {
        store_part(even + i * kept_pitch, load_channels(rest), size);
      }
    }
  }

  void write_gradient(const float *gradient, int64_t first, int64_t count, int64_t g,
                      GradientSums *) const {
    const int64_t size = used(g);
    if (!halves) {
      float *out = dx + first * channels + g * kGroup;
      for (int64_t i = 0; i < count; ++i) {
        Channels<kVecs> sum = load_channels(gradient + i * kGroup);
        if (add) {
          const Channels<kVecs> other = load_part<kVecs>(out + i * channels, size);
          for (int v = 0; v < kVecs; ++v) {
            sum.v[v] += other.v[v];
          }
        }
        store_part(out + i * channels, sum, size);
      }
      return;
    }
    float *out = dx + first * channels + 2 * g * kGroup;
    const float *even = kept_gradient + first * kept_pitch + g * kGroup;
    for (int64_t i = 0; i < count; ++i, out += channels, even += kept_pitch, gradient += kGroup) {
      if (size == kGroup) {
#pragma omp simd
        for (int j = 0; j < kGroup; ++j) {
          out[2 * j] = even[j];
          out[2 * j + 1] = gradient[j];
        }
      } else {
        for (int64_t j = 0; j < size; ++j) {
          out[2 * j] = even[j];
          out[2 * j + 1] = gradient[j];
        }
      }
    }
  }
};

// What the others read: the output z of the convolution before, behind normalisation and ReLU.
struct Normalised {
  const float *z;
  int64_t pixels;
  Affine affine;
  bool relu;
  float *g = nullptr;           // where its gradient goes, as z lies
  const float *mean = nullptr;  // as long as all groups

  void read(float *out, int64_t pitch, int64_t first, int64_t count, int64_t g) const {
    const Channels<kVecs> scale = load_channels(affine.scale + g * kGroup);
    const Channels<kVecs> shift = load_channels(affine.shift + g * kGroup);
    const float *in = z + (g * pixels + first) * kGroup;
    const auto each = [&](const auto &finish) SPNAS_ALWAYS {
      for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          const Vec value = load(in + i * kGroup + v * kLanes) * scale.v[v] + shift.v[v];
          store(out + i * pitch + v * kLanes, finish(value));
        }
      }
    };
    if (relu) {
      each([](Vec value) { return spnas::relu(value); });
    } else {
      each([](Vec value) { return value; });
    }
  }

  void write_gradient(const float *gradient, int64_t first, int64_t count, int64_t g,
                      GradientSums *sums) const {
    const Channels<kVecs> scale = load_channels(affine.scale + g * kGroup);
    const Channels<kVecs> shift = load_channels(affine.shift + g * kGroup);
    const Channels<kVecs> middle = load_channels(mean + g * kGroup);
    const float *in = z + (g * pixels + first) * kGroup;
    float *out = this->g + (g * pixels + first) * kGroup;
    Vec gradients[kVecs] = {}, products[kVecs] = {};
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const int64_t at = i * kGroup + v * kLanes;
        const Vec value = load(in + at);
        Vec own = load(gradient + at);
        if (relu) {
          own = value * scale.v[v] + shift.v[v] > 0 ? own : Vec{};
        }
        store(out + at, own);
        gradients[v] += own;
        products[v] += own * (value - middle.v[v]);
      }
    }
    add_channels((*sums)[0], gradients);
    add_channels((*sums)[1], products);
  }
};

// What a convolution reads, 16 channels of some pixels at a time.
class Input {
 public:
  template <typename Kind>
  Input(const Kind &kind) : kind_(kind) {}  // NOLINT: either kind is one

  // Writes channels of group g of `count` pixels; 16 floats every `pitch`.
  void read(float *out, int64_t pitch, int64_t first, int64_t count, int64_t g) const {
    std::visit([&](const auto &kind) { kind.read(out, pitch, first, count, g); }, kind_);
  }

  // Takes their gradients, (count, 16) of a few hundred pixels at most.
  void write_gradient(const float *gradient, int64_t first, int64_t count, int64_t g,
                      GradientSums *sums) const {
    std::visit([&](const auto &kind) { kind.write_gradient(gradient, first, count, g, sums); },
               kind_);
  }

 private:
  std::variant<Images, Normalised> kind_;
};

// The gradient of a convolution's output z, from g behind its normalisation.
struct OutputGradient {
  const float *z, *g;
  int64_t pixels;
  const NormGradient &norm;

  // 16 floats every 16, of `count` pixels of group g.
  void read(float *out, int64_t first, int64_t count, int64_t group) const {
    const Channels<kVecs> scale = load_channels(norm.scale + group * kGroup);
    const Channels<kVecs> factor = load_channels(norm.in_factor + group * kGroup);
    const Channels<kVecs> constant = load_channels(norm.constant + group * kGroup);
    const int64_t at = (group * pixels + first) * kGroup;
    for (int64_t i = 0; i < count * kGroup; i += kGroup) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const int64_t j = at + i + v * kLanes;
        store(out + i + v * kLanes,
              scale.v[v] * load(g + j) + (factor.v[v] * load(z + j) + constant.v[v]));
      }
    }
  }
};

// The two directions of a convolution of a chain.
class ChainConvolution {
 public:
  ChainConvolution(const ConvLayer &layer, const Input &input, Arena &arena)
      : l_(layer), input_(input), arena_(arena),
        planes_(layer.h, layer.w, layer.side, layer.stride) {}

  // z, and, unless `sums` is null, its sums (groups, parts, 2, 16). T is that of factors.
  template <typename T>
  Status forward(float *z, float *sums) const {
    return l_.depthwise() ? convolve_planes(z, sums) : multiply<T>(z, sums);
  }

  // The weight's gradient, and that of the input, whose sums are added to `sums`,
  // (kMaxRanges, groups).
  Status backward(const OutputGradient &dz, float *dweight, GradientSums *sums) const {
    return l_.depthwise() ? convolve_planes_back(dz, dweight, sums)
                          : multiply_back(dz, dweight, sums);
  }

 private:
  template <typename T>
  Status multiply(float *z, float *sums) const {
    const int64_t depth = l_.groups() * kGroup, pixels = l_.pixels(), tile = l_.part_size();
    const T *panels = pack_panels<T>(arena_, l_.out, depth, [&](int64_t k, int64_t o) {
      return k < l_.in ? l_.weight[o * l_.in + k] : 0;
    });
    return parallel(pixels, tile, [&](int64_t first, int64_t last) {
      const int64_t now = last - first;
      const T *in = read_tile<T>(first, now);
      for (int64_t g = 0; g < l_.out_groups(); ++g) {
        float *out = z + (g * pixels + first) * kGroup;
        product<kVecs, T>(
            now, {in, depth, depth}, panels + g * panel_size<T>(depth),
            [](int64_t) { return Channels<kVecs>{}; },
            [&](int64_t i, const Channels<kVecs> &c) { store_channels(out + i * kGroup, c); });
        if (sums != nullptr) {
          part_sums<kVecs>(sums + (g * l_.parts() + first / tile) * 2 * kGroup, out, kGroup, kGroup,
                           now);
        }
      }
    });
  }

  Status multiply_back(const OutputGradient &dz, float *dweight, GradientSums *sums) const {
    const int64_t depth = l_.groups() * kGroup, out_depth = l_.out_groups() * kGroup;
    const int64_t pixels = l_.pixels(), parts = range_count(pixels);
    const int64_t tile = tile_pixels(std::max(depth, out_depth));
    const float *panels = pack_panels(arena_, l_.in, out_depth, [&](int64_t o, int64_t c) {
      return o < l_.out ? l_.weight[o * l_.in + c] : 0;
    });
    const int64_t size = out_depth * l_.in;  // (groups, in, 16)
    float *products = arena_.take(parts * size);
    const Status status = parallel(parts, 1, [&](int64_t part, int64_t) {
      float *product = products + part * size;
      std::memset(product, 0, size * sizeof(float));
      const int64_t end = range_begin(pixels, part + 1, parts);
      for (int64_t i = range_begin(pixels, part, parts); i < end; i += tile) {
        multiply_tile_back(dz, i, std::min(tile, end - i), panels, product,
                           sums + part * l_.groups());
      }
    });
    if (status) {
      return status;
    }
    return parallel(l_.out_groups(), 1, [&](int64_t g, int64_t) {
      const float *total = add_parts(products + g * l_.in * kGroup, parts, size, l_.in * kGroup);
      for (int64_t j = 0; j < group_size(l_.out, g); ++j) {
        for (int64_t k = 0; k < l_.in; ++k) {
          dweight[(g * kGroup + j) * l_.in + k] = total[k * kGroup + j];
        }
      }
    });
  }

  void multiply_tile_back(const OutputGradient &dz, int64_t first, int64_t now, const float *panels,
                          float *products, GradientSums *sums) const {
    const int64_t depth = l_.groups() * kGroup, out_depth = l_.out_groups() * kGroup;
    const float *in = read_tile<float>(first, now);
    float *out = scratch(Slot::kOther, now * out_depth);  // (groups, now, 16)
    float *gradient = scratch(Slot::kGradients, now * kGroup);
    for (int64_t g = 0; g < l_.out_groups(); ++g) {
      float *group = out + g * now * kGroup;
      dz.read(group, first, now, g);
      outer<kVecs>(products + g * l_.in * kGroup, l_.in, in, depth, group, kGroup, now);
    }
    const Left<float> left{out, kGroup, kGroup, l_.out_groups(), now * kGroup};
    for (int64_t g = 0; g < l_.groups(); ++g) {
      product<kVecs, float>(
          now, left, panels + g * out_depth * kGroup, [](int64_t) { return Channels<kVecs>{}; },
          [&](int64_t i, const Channels<kVecs> &c) { store_channels(gradient + i * kGroup, c); });
      input_.write_gradient(gradient, first, now, g, sums + g);
    }
  }

  // Channels of some pixels, (pixels, all groups), in scratch of the thread.
  template <typename T>
  const T *read_tile(int64_t first, int64_t pixels) const {
    const int64_t depth = l_.groups() * kGroup;
    T *in = scratch<T>(Slot::kTile, pixels * depth);
    for (int64_t g = 0; g < l_.groups(); ++g) {
      if constexpr (std::is_same_v<T, float>) {
        input_.read(in + g * kGroup, depth, first, pixels, g);
      } else {
        float *group = scratch(Slot::kOther, pixels * kGroup);
        input_.read(group, kGroup, first, pixels, g);
        for (int64_t i = 0; i < pixels; ++i) {
          store_channels(in + i * depth + g * kGroup, load_channels(group + i * kGroup));
        }
      }
    }
    return in;
  }

  Status convolve_planes(float *z, float *sums) const {
    const float *kernels = pack_kernels();
    const int64_t parts = l_.parts_of(l_.plane());
    return parallel(l_.n * l_.groups(), 1, [&](int64_t task, int64_t) {
      const int64_t n = task / l_.groups(), g = task % l_.groups();
      const float *plane = read_plane(n, g);
      float *out = z + (g * l_.n + n) * l_.plane() * kGroup;
      planes_.forward(plane, kernels + g * planes_.taps * kGroup, [&](int64_t i, int v, Vec sum) {
        store(out + i * kGroup + v * kLanes, sum);
      });
      for (int64_t i = 0; sums != nullptr && i < parts; ++i) {
        const int64_t first = i * l_.part_size();
        part_sums<kVecs>(sums + ((g * l_.n + n) * parts + i) * 2 * kGroup, out + first * kGroup,
                         kGroup, kGroup, std::min(l_.part_size(), l_.plane() - first));
      }
    });
  }

  Status convolve_planes_back(const OutputGradient &dz, float *dweight, GradientSums *sums) const {
    const int64_t parts = std::min(kMaxRanges, l_.n), groups = l_.groups();
    const int64_t size = planes_.taps * kGroup;
    const float *kernels = pack_kernels();
    float *flipped = arena_.take(groups * size), *gradients = arena_.take(parts * groups * size);
    for (int64_t g = 0; g < groups; ++g) {
      planes_.flip(flipped + g * size, kernels + g * size);
    }
    const Status status = parallel(parts * groups, 1, [&](int64_t task, int64_t) {
      const int64_t part = task / groups, g = task % groups;
      float *gradient = gradients + task * size;
      std::memset(gradient, 0, size * sizeof(float));
      const int64_t end = range_begin(l_.n, part + 1, parts);
      for (int64_t n = range_begin(l_.n, part, parts); n < end; ++n) {
        convolve_plane_back(dz, n, g, flipped + g * size, gradient, sums + task);
      }
    });
    if (status) {
      return status;
    }
    for (int64_t g = 0; g < groups; ++g) {
      const float *total = add_parts(gradients + g * size, parts, groups * size, size);
      for (int64_t j = 0; j < group_size(l_.in, g); ++j) {
        for (int t = 0; t < planes_.taps; ++t) {
          dweight[(g * kGroup + j) * planes_.taps + t] = total[t * kGroup + j];
        }
      }
    }
    return kOk;
  }

  void convolve_plane_back(const OutputGradient &dz, int64_t n, int64_t g, const float *flipped,
                           float *dkernel, GradientSums *sums) const {
    const float *plane = read_plane(n, g);
    float *out = scratch(Slot::kGradients, planes_.out_size);
    planes_.clear_out_border(out, [&](int64_t y) { return y >= 0 && y < l_.out_h; });
    for (int64_t y = 0; y < l_.out_h; ++y) {
      dz.read(out + planes_.out_at(y, 0), n * l_.plane() + y * l_.out_w, l_.out_w, g);
    }
    planes_.kernel_gradient(dkernel, out, plane);
    const int64_t pixels = l_.h * l_.w;
    float *gradient = scratch(Slot::kTile, pixels * kGroup);
    planes_.input_gradient(out, flipped, [&](int64_t y, int64_t x, int v, Vec sum) {
      store(gradient + (y * l_.w + x) * kGroup + v * kLanes, sum);
    });
    for (int64_t i = 0; i < pixels; i += kSumPixels) {
      input_.write_gradient(gradient + i * kGroup, n * pixels + i, std::min(kSumPixels, pixels - i),
                            g, sums);
    }
  }

  // (groups, taps, 16)
  const float *pack_kernels() const {
    return pack_panels(arena_, l_.in, planes_.taps,
                       [&](int64_t t, int64_t c) { return l_.weight[c * planes_.taps + t]; });
  }

  // One sample and group with zeros around it, in scratch of the thread.
  const float *read_plane(int64_t n, int64_t g) const {
    float *plane = scratch(Slot::kPlanes, planes_.size);
    planes_.clear_border(plane, [&](int64_t y) { return y >= 0 && y < l_.h; });
    for (int64_t y = 0; y < l_.h; ++y) {
      input_.read(plane + planes_.at(y, 0), kGroup, (n * l_.h + y) * l_.w, l_.w, g);
    }
    return plane;
  }

  const ConvLayer &l_;
  const Input &input_;
  Arena &arena_;
  const Planes planes_;
};

}  // namespace spnas
