// The call of an MBConv block: parameters, sizes, and what is active of it.
//
//     e = relu(norm(expand x)),  h = relu(norm(depthwise e)),  y = norm(project h) [+ x]
//
// Images lie in memory with channels last: x is (N, H, W, C). Within the block tensors lie in
// groups of 16 channels, (groups, pixels of all samples, 16).
#pragma once

#include <cstdint>

#include "call.h"
#include "norm_call.h"
#include "vectors.h"

namespace spnas {

// The parameter "decision": side of the kernel, channels of the expansion, presence of the block. A
// smaller kernel is the middle of the largest, and fewer channels are the first ones. What is not
// active has no part in the result and a gradient of zero.
struct DecisionPlaces {
  enum { kSide, kChannels, kPresence, kCount };
};

// Statistics of the wide normalisations, rows of a parameter (kCount, channels); without expansion
// there is only the second.
struct WideRows {
  enum {
    kNext,
    kPlainCount = kNext + StatisticsRows::kCount,
    kFirst = kPlainCount,
    kCount = kFirst + StatisticsRows::kCount
  };
};

// Parameters of the convolutions. A block without expansion has none of those of the first.
struct BlockPlaces {
  bool expands;
  int x = 0, expand, norm, depthwise, next_norm, project, last_norm, after;

  // With `per_norm` parameters per normalisation and `per_last_norm` in the last one.
  BlockPlaces(bool expands, int per_norm, int per_last_norm)
      : expands(expands), expand(1), norm(2), depthwise(expands ? norm + per_norm : 1),
        next_norm(depthwise + 1), project(next_norm + per_norm), last_norm(project + 1),
        after(last_norm + per_last_norm) {}
};

// Sizes of a block, and what of it is active.
struct Block {
  int64_t n, h, w, channels;  // of x
  int64_t mid, out_channels;  // behind the expansion; of y
  int64_t out_h, out_w;       // of y
  int kernel, stride;         // the largest kernel
  bool expands, residual;
  int side;
  int64_t active;
  bool present;

  int64_t pixels() const { return n * h * w; }
  int64_t out_pixels() const { return n * out_h * out_w; }
  int64_t active_groups() const { return group_count(active); }
  int64_t inputs() const { return pixels() * channels; }
  // The place of an active tap in the largest kernel.
  int64_t tap(int64_t t) const {
    return (kernel - side) / 2 * (kernel + 1) + t / side * kernel + t % side;
  }
};

// Reads sizes from the parameters, and checks those that all calls of blocks share.
inline Status read_block(const Call &call, const BlockPlaces &at, int stride, int options,
                         int decision, Block &b) {
  if (call.ndims[at.x] != 4 || call.ndims[at.depthwise] != 4 || call.ndims[at.project] != 4 ||
      !call.is_shape(options, {Options::kCount}) ||
      !call.is_shape(decision, {DecisionPlaces::kCount})) {
    return kBadShape;
  }
  const int64_t *x = call.shapes[at.x];
  b.n = x[0], b.h = x[1], b.w = x[2], b.channels = x[3];
  b.mid = call.shapes[at.depthwise][0], b.kernel = static_cast<int>(call.shapes[at.depthwise][2]);
  b.out_channels = call.shapes[at.project][0];
  b.expands = at.expands;
  b.stride = stride;
  b.residual = call.data(options)[Options::kResidual] != 0;
  b.out_h = (b.h - 1) / b.stride + 1, b.out_w = (b.w - 1) / b.stride + 1;
  const bool valid = b.n > 0 && b.h > 0 && b.w > 0 && b.channels > 0 && b.out_channels > 0;
  const bool fits =
      is_kernel(b.kernel) && b.mid > 0 &&
      call.is_shape(at.depthwise, {b.mid, 1, b.kernel, b.kernel}) &&
      call.is_shape(at.project, {b.out_channels, b.mid, 1, 1}) &&
      (at.expands ? call.is_shape(at.expand, {b.mid, b.channels, 1, 1}) : b.mid == b.channels);
  const bool adds = !b.residual || (b.stride == 1 && b.channels == b.out_channels);
  if (!valid || !fits || !adds) {
    return kBadShape;
  }
  const float *d = call.data(decision);
  b.side = static_cast<int>(d[DecisionPlaces::kSide]);
  b.active = static_cast<int64_t>(d[DecisionPlaces::kChannels]);
  b.present = d[DecisionPlaces::kPresence] != 0;
  const bool known = is_kernel(b.side) && b.side <= b.kernel && b.active > 0 && b.active <= b.mid &&
                     (b.present || b.residual) && (b.expands || b.active == b.mid);
  return known ? kOk : kBadValue;
}

// Whether the parameters that forward leaves to backward have their shapes.
template <typename Places>
bool fits_saved(const Call &call, const Places &at, const Block &b) {
  const int64_t rows = b.expands ? WideRows::kCount : WideRows::kPlainCount;
  return call.is_shape(at.z, {group_count(b.mid), b.out_pixels(), kGroup}) &&
         call.is_shape(at.projected, {b.n, b.out_h, b.out_w, b.out_channels}) &&
         (!b.expands || (call.is_shape(at.input_mean, {b.channels}) &&
                         call.is_shape(at.spread, {b.mid, b.channels}))) &&
         call.is_shape(at.wide, {rows, b.mid}) &&
         call.is_shape(at.narrow, {StatisticsRows::kCount, b.out_channels});
}

}  // namespace spnas
