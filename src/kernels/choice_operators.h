// A layer of a one-shot supernet as operators: several shuffle blocks, of which one is computed.
//
//     y = [channels of x of even number, branch(those of odd number)]    stride 1
//     y = [projection(x), branch(x)]                                     stride 2
//
// Images lie in memory with channels last, x is (N, H, W, C). Branch and projection are chains
// (chain.h), of which the first depthwise convolution has the stride. What the chosen block leaves
// to backward, z and statistics of each convolution, lies in one parameter, as large as any needs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "arena.h"
#include "call.h"
#include "chain.h"
#include "channel_sums.h"
#include "norm_call.h"
#include "scratch.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

// The parameter "counts" has a row per block: how many convolutions it has.
struct CountColumns {
  enum { kBranch, kProjection, kCount };
};

// Parameters begin with x and the weights of all blocks: block after block, the branch's before the
// projection's. Where there are moving statistics, mean and variance for each weight follow.
struct ChoicePlaces {
  enum { kX, kWeight };
  int weights, moving, options, counts, choice, after;

  // With so many weights.
  ChoicePlaces(int weights, bool normalises)
      : weights(weights), moving(kWeight + weights),
        options(moving + (normalises ? 2 * weights : 0)), counts(options + (normalises ? 1 : 0)),
        choice(counts + 1), after(choice + 1) {}
};

// The block that is computed.
struct ChosenBlock {
  int64_t n, h, w, channels, out_h, out_w, out_channels, kept;
  bool halves;
  int first;  // number of its first weight, that of its branch
  std::vector<ConvLayer> branch, projection;

  // Floats that it leaves to backward.
  int64_t saved_size() const {
    int64_t size = 0;
    for (const auto *chain : {&branch, &projection}) {
      for (const ConvLayer &layer : *chain) {
        size += layer.output_size() + StatisticsRows::kCount * layer.out;
      }
    }
    return size;
  }
};

// Adds `count` convolutions of x (n, h, w, channels), whose weights begin at parameter `weight`.
inline bool read_chain(const Call &call, const ChosenBlock &b, int weight, int count, int stride,
                       std::vector<ConvLayer> &chain) {
  ConvLayer next{b.n, b.h, b.w, b.halves ? b.channels / 2 : b.channels, 0, 0, 0, 0, 0, nullptr};
  bool strided = stride == 1;
  for (int i = weight; i < weight + count; ++i) {
    if (call.ndims[i] != 4 || call.size(i) == 0) {
      return false;
    }
    next.out = call.shapes[i][0], next.side = static_cast<int>(call.shapes[i][2]);
    next.weight = call.data(i);
    const bool fits = next.side == 1 ? call.is_shape(i, {next.out, next.in, 1, 1})
                                     : is_kernel(next.side) && next.out == next.in &&
                                           call.is_shape(i, {next.out, 1, next.side, next.side});
    if (!fits) {
      return false;
    }
    next.stride = next.depthwise() && !strided ? stride : 1;
    strided = strided || next.depthwise();
    next.out_h = (next.h - 1) / next.stride + 1, next.out_w = (next.w - 1) / next.stride + 1;
    chain.push_back(next);
    next.h = next.out_h, next.w = next.out_w, next.in = next.out;
  }
  return count > 0 && strided && chain.back().relu();
}

// The numbers of the chosen block's weights: the branch's, and behind them the projection's.
struct ChosenWeights {
  int first, branch, projection;

  int last() const { return first + branch + projection; }

  // From `counts` and `choice`, of so many weights.
  Status read(const Call &call, int counts, int choice, int weights) {
    if (call.ndims[counts] != 2 || call.shapes[counts][1] != CountColumns::kCount ||
        call.size(choice) != 1) {
      return kBadShape;
    }
    const auto chosen = static_cast<int64_t>(call.data(choice)[0]);
    const int64_t blocks = call.shapes[counts][0];
    if (chosen < 0 || chosen >= blocks) {
      return kBadValue;
    }
    const float *row = call.data(counts);
    int total = 0;
    for (int64_t i = 0; i < blocks; ++i, row += CountColumns::kCount) {
      const int own[] = {static_cast<int>(row[CountColumns::kBranch]),
                         static_cast<int>(row[CountColumns::kProjection])};
      if (own[0] < 1 || own[1] < 0) {
        return kBadValue;
      }
      if (i == chosen) {
        first = total, branch = own[0], projection = own[1];
      }
      total += own[0] + own[1];
    }
    return total == weights ? kOk : kBadValue;
  }
};

// Reads the chosen block from the parameters; shapes are checked for this block alone.
inline Status read_choice(const Call &call, const ChoicePlaces &at, int stride, ChosenBlock &b) {
  if (at.weights < 1 || call.ndims[at.kX] != 4 || call.size(at.kX) == 0) {
    return kBadShape;
  }
  const int64_t *x = call.shapes[at.kX];
  b.n = x[0], b.h = x[1], b.w = x[2], b.channels = x[3];
  b.halves = stride == 1;
  ChosenWeights own;
  if (Status status = own.read(call, at.counts, at.choice, at.weights)) {
    return status;
  }
  b.first = own.first;
  const int branch = at.kWeight + own.first, projection = branch + own.branch;
  const bool fits = b.halves
                        ? b.channels % 2 == 0 && own.projection == 0
                        : read_chain(call, b, projection, own.projection, stride, b.projection);
  if (!fits || !read_chain(call, b, branch, own.branch, stride, b.branch)) {
    return kBadShape;
  }
  b.kept = b.halves ? b.channels / 2 : b.projection.back().out;
  const ConvLayer &last = b.branch.back();
  b.out_h = last.out_h, b.out_w = last.out_w, b.out_channels = b.kept + last.out;
  return kOk;
}

// Whether the moving statistics of the block have their shapes.
inline bool fits_moving(const Call &call, const ChoicePlaces &at, const ChosenBlock &b) {
  int mean = at.moving + 2 * b.first;
  for (const auto *chain : {&b.branch, &b.projection}) {
    for (const ConvLayer &layer : *chain) {
      if (!call.is_shape(mean, {layer.out}) || !call.is_shape(mean + 1, {layer.out})) {
        return false;
      }
      mean += 2;
    }
  }
  return call.is_shape(at.options, {Options::kCount});
}

// Whether parameter i is the output of the block.
inline bool is_output(const Call &call, int i, const ChosenBlock &b) {
  return call.is_shape(i, {b.n, b.out_h, b.out_w, b.out_channels});
}

// z and statistics of a convolution within the parameter that is left to backward.
struct SavedLayer {
  float *z, *statistics;  // (groups, pixels, 16); StatisticsRows

  // At `next`, which moves behind it.
  SavedLayer(const ConvLayer &layer, float *&next) : z(next), statistics(z + layer.output_size()) {
    next = statistics + StatisticsRows::kCount * layer.out;
  }
};

// Scale and shift of a normalisation that has none, for the most channels of a block.
struct Unscaled {
  float *ones, *zeros;

  Unscaled(const ChosenBlock &b, Arena &arena) {
    int64_t channels = 0;
    for (const auto *chain : {&b.branch, &b.projection}) {
      for (const ConvLayer &layer : *chain) {
        channels = std::max(channels, layer.out);
      }
    }
    ones = arena.take(channels), zeros = arena.zeros(channels);
    std::fill(ones, ones + channels, 1.0f);
  }
};

// Writes what the last convolution of a chain gives, as channels of y (pixels, channels) from
// `first` on.
inline Status write_output(const ConvLayer &layer, const Normalised &result, float *y,
                           int64_t channels, int64_t first) {
  return parallel(layer.out_pixels(), kSumPixels, [&](int64_t begin, int64_t end) {
    float *part = scratch(Slot::kTile, kSumPixels * kGroup);
    for (int64_t g = 0; g < layer.out_groups(); ++g) {
      result.read(part, kGroup, begin, end - begin, g);
      float *out = y + begin * channels + first + g * kGroup;
      for (int64_t i = 0; i < end - begin; ++i) {
        store_part(out + i * channels, load_channels(part + i * kGroup), group_size(layer.out, g));
      }
    }
  });
}

// In training and in inference, whose only output is y.
struct ChoiceForwardPlaces {
  ChoicePlaces in;
  int y, saved, count;

  ChoiceForwardPlaces(int parameters, bool trains)
      : in((parameters - ChoicePlaces(0, true).after - (trains ? 2 : 1)) / 3, /*normalises=*/true),
        y(in.after), saved(y + 1), count(trains ? saved + 1 : saved) {}
};

// T is the type of factors; backward knows float alone.
template <typename T>
class ChoiceTrain {
 public:
  ChoiceTrain(const Call &call, const ChoiceForwardPlaces &at, const ChosenBlock &b, Arena &arena)
      : call_(call), at_(at), b_(b), arena_(arena), unscaled_(b, arena), number_(b.first),
        saved_(call.data(at.saved)) {}

  Status run() {
    float *y = call_.data(at_.y);
    Images images{call_.data(at_.in.kX), b_.channels, b_.halves};
    if (b_.halves) {
      images.kept = y, images.kept_pitch = b_.out_channels;
    }
    if (Status status = run_chain(b_.branch, images, b_.kept)) {
      return status;
    }
    return b_.halves ? kOk : run_chain(b_.projection, images, 0);
  }

 private:
  Status run_chain(const std::vector<ConvLayer> &chain, const Images &images, int64_t channel) {
    Input input = images;
    for (const ConvLayer &layer : chain) {
      const SavedLayer own(layer, saved_);
      float *sums = arena_.take(layer.out_groups() * layer.parts() * 2 * kGroup);
      if (Status status = ChainConvolution(layer, input, arena_).template forward<T>(own.z, sums)) {
        return status;
      }
      const Affine affine(arena_, layer.out);
      const int moving = at_.in.moving + 2 * number_;  // and the new ones in their place
      const TrainNorm norm(unscaled_.ones, unscaled_.zeros, call_, moving, at_.in.options,
                           own.statistics, layer.out, moving);
      const Status status = norm.use_parts(
          layer.out, layer.parts(), sums, [&](int64_t i) { return layer.part_pixels(i); }, affine);
      if (status) {
        return status;
      }
      ++number_;
      const Normalised result{own.z, layer.out_pixels(), affine, layer.relu()};
      input = result;
      if (&layer == &chain.back()) {
        return write_output(layer, result, call_.data(at_.y), b_.out_channels, channel);
      }
    }
    return kOk;
  }

  const Call &call_;
  const ChoiceForwardPlaces &at_;
  const ChosenBlock &b_;
  Arena &arena_;
  const Unscaled unscaled_;
  int number_;    // of the next weight
  float *saved_;  // for the next convolution
};

// x, weights, moving statistics, options, counts, choice -> y, saved; changes the moving statistics
template <typename T>
inline Status choice_train(const Call &call, int stride) {
  const ChoiceForwardPlaces at(call.count, /*trains=*/true);
  ChosenBlock b;
  if (Status status = call.check(at.count)) {
    return status;
  }
  if (Status status = read_choice(call, at.in, stride, b)) {
    return status;
  }
  if (!fits_moving(call, at.in, b) || !is_output(call, at.y, b) ||
      call.size(at.saved) < b.saved_size()) {
    return kBadShape;
  }
  Arena arena;
  return ChoiceTrain<T>(call, at, b, arena).run();
}

// x, weights, moving statistics, options, counts, choice -> y
template <typename T>
inline Status choice_infer(const Call &call, int stride) {
  const ChoiceForwardPlaces places(call.count, /*trains=*/false);
  const ChoicePlaces &at = places.in;
  const int y = places.y;
  ChosenBlock b;
  if (Status status = call.check(places.count)) {
    return status;
  }
  if (Status status = read_choice(call, at, stride, b)) {
    return status;
  }
  if (!fits_moving(call, at, b) || !is_output(call, y, b)) {
    return kBadShape;
  }
  Arena arena;
  const float epsilon = call.data(at.options)[Options::kEpsilon];
  int number = b.first;
  const auto run_chain = [&](const std::vector<ConvLayer> &chain, int64_t channel) -> Status {
    Images images{call.data(at.kX), b.channels, b.halves};
    if (b.halves) {
      images.kept = call.data(y), images.kept_pitch = b.out_channels;
    }
    Input input = images;
    for (const ConvLayer &layer : chain) {
      const Affine affine(arena, layer.out);
      const float *mean = call.data(at.moving + 2 * number);
      const float *variance = call.data(at.moving + 2 * number + 1);
      for (int64_t c = 0; c < layer.out; ++c) {
        affine.set(c, mean[c], 1 / std::sqrt(variance[c] + epsilon), 1, 0);
      }
      ++number;
      float *z = arena.take(layer.output_size());
      const Status status = ChainConvolution(layer, input, arena).forward<T>(z, /*sums=*/nullptr);
      if (status) {
        return status;
      }
      const Normalised result{z, layer.out_pixels(), affine, layer.relu()};
      input = result;
      if (&layer == &chain.back()) {
        return write_output(layer, result, call.data(y), b.out_channels, channel);
      }
    }
    return kOk;
  };
  if (Status status = run_chain(b.branch, b.kept)) {
    return status;
  }
  return b.halves ? kOk : run_chain(b.projection, 0);
}

// In backward, whose outputs are the gradients of x and of all weights.
struct ChoiceBackwardPlaces {
  ChoicePlaces in;
  int saved, dy, dx, dweights, count;

  explicit ChoiceBackwardPlaces(int weights)
      : in(weights, /*normalises=*/false), saved(in.after), dy(saved + 1), dx(dy + 1),
        dweights(dx + 1), count(dweights + weights) {}

  static ChoiceBackwardPlaces of(int parameters) {
    return ChoiceBackwardPlaces((parameters - ChoiceBackwardPlaces(0).count) / 2);
  }
};

class ChoiceBackward {
 public:
  ChoiceBackward(const Call &call, const ChoiceBackwardPlaces &at, const ChosenBlock &b,
                 Arena &arena)
      : call_(call), at_(at), b_(b), arena_(arena), unscaled_(b, arena), number_(b.first),
        saved_(call.data(at.saved)) {
    int64_t most = 0;
    for (const auto *chain : {&b.branch, &b.projection}) {
      for (const ConvLayer &layer : *chain) {
        most = std::max(most, layer.output_size());
      }
    }
    for (float *&gradient : gradients_) {
      gradient = arena.take(most);
    }
  }

  Status run() {
    Images images{call_.data(at_.in.kX), b_.channels, b_.halves};
    images.dx = call_.data(at_.dx);
    if (b_.halves) {
      images.kept_gradient = call_.data(at_.dy), images.kept_pitch = b_.out_channels;
    }
    if (Status status = run_chain(b_.branch, images, b_.kept)) {
      return status;
    }
    images.add = true;  // to what the branch has given
    return b_.halves ? kOk : run_chain(b_.projection, images, 0);
  }

 private:
  // From the last convolution of a chain to the first.
  Status run_chain(const std::vector<ConvLayer> &chain, const Images &images, int64_t channel) {
    std::vector<NormGradient> norms;
    std::vector<Input> inputs{images};
    std::vector<const float *> outputs;
    for (const ConvLayer &layer : chain) {
      const SavedLayer own(layer, saved_);
      norms.emplace_back(arena_, layer.out, layer.out, unscaled_.ones, unscaled_.zeros,
                         own.statistics);
      Affine affine(arena_, 0);
      affine.scale = norms.back().scale, affine.shift = norms.back().shift;
      outputs.push_back(own.z);
      inputs.push_back(Normalised{own.z, layer.out_pixels(), affine, layer.relu(),
                                  gradients_[norms.size() % 2], norms.back().mean});
    }
    const int first = number_;
    number_ += static_cast<int>(chain.size());
    auto *sums = new_sums(chain.back().out_groups());
    if (Status status = read_gradient(chain.back(), inputs.back(), channel, sums)) {
      return status;
    }
    for (int i = static_cast<int>(chain.size()) - 1; i >= 0; --i) {
      const ConvLayer &layer = chain[i];
      finish(layer, norms[i], sums);
      sums = new_sums(layer.groups());
      const OutputGradient dz{outputs[i], gradients_[(i + 1) % 2], layer.out_pixels(), norms[i]};
      const Status status = ChainConvolution(layer, inputs[i], arena_)
                                .backward(dz, call_.data(at_.dweights + first + i), sums);
      if (status) {
        return status;
      }
    }
    return kOk;
  }

  GradientSums *new_sums(int64_t groups) const {
    const int64_t size = kMaxRanges * groups * sizeof(GradientSums) / sizeof(float);
    return reinterpret_cast<GradientSums *>(arena_.zeros(size));
  }

  // dy of a chain's channels, as the gradient behind its last normalisation.
  Status read_gradient(const ConvLayer &layer, const Input &result, int64_t channel,
                       GradientSums *sums) const {
    const float *dy = call_.data(at_.dy) + channel;
    const int64_t pixels = layer.out_pixels(), parts = range_count(pixels);
    return parallel(parts, 1, [&](int64_t part, int64_t) {
      float *gradient = scratch(Slot::kTile, kSumPixels * kGroup);
      const int64_t end = range_begin(pixels, part + 1, parts);
      for (int64_t first = range_begin(pixels, part, parts); first < end; first += kSumPixels) {
        const int64_t now = std::min(kSumPixels, end - first);
        for (int64_t g = 0; g < layer.out_groups(); ++g) {
          const float *in = dy + first * b_.out_channels + g * kGroup;
          for (int64_t i = 0; i < now; ++i) {
            store_channels(gradient + i * kGroup,
                           load_part<kVecs>(in + i * b_.out_channels, group_size(layer.out, g)));
          }
          result.write_gradient(gradient, first, now, g, sums + part * layer.out_groups() + g);
        }
      }
    });
  }

  // What the gradient of a normalisation needs of all pixels.
  static void finish(const ConvLayer &layer, const NormGradient &norm, const GradientSums *sums) {
    for (int64_t c = 0; c < layer.out; ++c) {
      double first = 0, second = 0;
      for (int64_t part = 0; part < kMaxRanges; ++part) {
        const GradientSums &own = sums[part * layer.out_groups() + c / kGroup];
        first += own[0][c % kGroup];
        second += own[1][c % kGroup];
      }
      norm.finish(c, first, second, static_cast<double>(layer.out_pixels()));
    }
  }

  const Call &call_;
  const ChoiceBackwardPlaces &at_;
  const ChosenBlock &b_;
  Arena &arena_;
  const Unscaled unscaled_;
  int number_;           // of the next chain's first weight
  float *saved_;         // of the next chain
  float *gradients_[2];  // of what lies behind a normalisation: of one convolution, and the next
};

// x, weights, counts, choice, saved, dy -> dx, gradients of the weights
inline Status choice_backward(const Call &call, int stride) {
  const auto at = ChoiceBackwardPlaces::of(call.count);
  ChosenBlock b;
  if (Status status = call.check(at.count)) {
    return status;
  }
  if (Status status = read_choice(call, at.in, stride, b)) {
    return status;
  }
  if (!is_output(call, at.dy, b) || !same_shape(call, at.in.kX, at.dx) ||
      call.size(at.saved) < b.saved_size()) {
    return kBadShape;
  }
  const int last = b.first + static_cast<int>(b.branch.size() + b.projection.size());
  for (int i = 0; i < at.in.weights; ++i) {
    if (!same_shape(call, at.in.kWeight + i, at.dweights + i)) {
      return kBadShape;
    }
    if (i < b.first || i >= last) {
      std::memset(call.data(at.dweights + i), 0, call.size(at.dweights + i) * sizeof(float));
    }
  }
  Arena arena;
  return ChoiceBackward(call, at, b, arena).run();
}

// SGD with momentum and weight decay of the chosen block's weights:
//
//     moment = momentum * moment + gradient + decay * weight,   weight -= rate * moment
//
// weights, moments, gradients, factors, counts, choice -> (1,); changes weights and moments
inline Status choice_momentum(const Call &call) {
  enum { kRate, kMomentum, kDecay, kFactors };
  const int weights = (call.count - 4) / 3;
  const int factors = 3 * weights, counts = factors + 1, choice = counts + 1, done = choice + 1;
  if (Status status = call.check(done + 1)) {
    return status;
  }
  ChosenWeights own;
  if (Status status = own.read(call, counts, choice, weights)) {
    return status;
  }
  if (!call.is_shape(factors, {kFactors}) || !call.is_shape(done, {1})) {
    return kBadShape;
  }
  const float *factor = call.data(factors);
  const float rate = factor[kRate], momentum = factor[kMomentum], decay = factor[kDecay];
  for (int i = own.first; i < own.last(); ++i) {
    if (!same_shape(call, i, weights + i) || !same_shape(call, i, 2 * weights + i)) {
      return kBadShape;
    }
    float *weight = call.data(i), *moment = call.data(weights + i);
    const float *gradient = call.data(2 * weights + i);
    const Status status = parallel(call.size(i), kGrain, [&](int64_t first, int64_t last) {
#pragma omp simd
      for (int64_t j = first; j < last; ++j) {
        moment[j] = momentum * moment[j] + (gradient[j] + decay * weight[j]);
        weight[j] -= rate * moment[j];
      }
    });
    if (status) {
      return status;
    }
  }
  call.data(done)[0] = 1;
  return kOk;
}

}  // namespace spnas
