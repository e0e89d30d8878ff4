// Pixels in pairs, as products that add up over pixels want the left side of bfloat16.
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "scratch.h"

namespace spnas {

// (pixels / 2, channels, 2) from (pixels, channels), in scratch of the thread; 0 stands behind an
// odd last pixel. Products of floats take x as it is.
inline const float *pair_pixels(const float *x, int64_t, int64_t) { return x; }
inline const Bfloat16 *pair_pixels(const Bfloat16 *x, int64_t channels, int64_t pixels) {
  auto *pairs = scratch<Bfloat16>(Slot::kPairs, (pixels + 1) * channels);
  for (int64_t i = 0; i < pixels; i += 2) {
    const Bfloat16 *first = x + i * channels, *second = first + channels;
    Bfloat16 *out = pairs + i * channels;
    if (i + 1 < pixels) {
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        out[2 * c].bits = first[c].bits;
        out[2 * c + 1].bits = second[c].bits;
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        out[2 * c].bits = first[c].bits;
        out[2 * c + 1].bits = 0;
      }
    }
  }
  return pairs;
}

}  // namespace spnas
