// MBConv blocks as operators: in training, in inference, and of a folded network.
//
// Inputs and outputs stand in the order of BlockTrainPlaces and BlockBackwardPlaces. In inference
// inputs are those of training; a folded block has a bias in place of each normalisation. Both have
// y as their only output.
#pragma once

#include <cstring>

#include "block_forward.h"

namespace spnas {

// Folded: one bias in place of the four parameters of a normalisation.
inline Status block_infer(const Call &call, bool expands, int stride, bool folded) {
  const int per_norm = folded ? 1 : NormInputs::kCount;
  const BlockPlaces at(expands, per_norm, per_norm);
  const int options = at.after, decision = options + 1, y = decision + 1;
  if (Status status = call.check(y + 1)) {
    return status;
  }
  Block b;
  if (Status status = read_block(call, at, stride, options, decision, b)) {
    return status;
  }
  bool fits = call.is_shape(y, {b.n, b.out_h, b.out_w, b.out_channels});
  for (int i = 0; i < per_norm; ++i) {
    fits = fits && (!expands || call.is_shape(at.norm + i, {b.mid})) &&
           call.is_shape(at.next_norm + i, {b.mid}) &&
           call.is_shape(at.last_norm + i, {b.out_channels});
  }
  if (!fits) {
    return kBadShape;
  }
  if (!b.present) {
    std::memcpy(call.data(y), call.data(at.x), b.inputs() * sizeof(float));
    return kOk;
  }
  Arena arena;
  const auto read = [&](int input, int64_t channels, int64_t active) {
    return moving_affine(call, input, options, folded, channels, active, arena);
  };
  const Affine norm = expands ? read(at.norm, b.mid, b.active) : Affine(arena, b.mid);
  return run_block(call, at, b, norm, read(at.next_norm, b.mid, b.active),
                   read(at.last_norm, b.out_channels, b.out_channels), arena, call.data(y));
}

}  // namespace spnas
