// Matrix products whose right side is a panel: 16 columns, row by row.
//
// Both hold a tile of sums in registers. On two cores they run at the speed of a large product of
// a BLAS, from matrices that lie in memory as the layers have them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vectors.h"

namespace spnas {

#define SPNAS_INLINE inline __attribute__((always_inline))

// Sums of a tile: they, a row of the panel and one factor fill the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileSums = 24 / kVecs * kVecs;
#else
constexpr int kTileSums = 12;
#endif

// Rows of a tile with kV vectors per row.
template <int kV>
constexpr int tile_rows() {
  return std::min(12, kTileSums / kV);
}

// The left side of a product: element (i, k) of segment s is data[s * stride + i * pitch + k], for
// k < depth. The panel has the rows of all segments, one segment after the other.
struct Left {
  const float *data;
  int64_t pitch, depth;
  int64_t segments = 1, stride = 0;
};

template <int kR, int kV, typename First, typename Out>
SPNAS_INLINE void product_tile(int64_t i, const Left &left, const float *panel, const First &first,
                               const Out &out) {
  Vec sum[kR][kV];
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r) {
    const Channels<kV> start = first(i + r);
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      sum[r][v] = start.v[v];
    }
  }
  const float *segment = left.data + i * left.pitch;
  for (int64_t s = 0; s < left.segments; ++s, segment += left.stride) {
    const float *a = segment;
    for (int64_t k = 0; k < left.depth; ++k, ++a, panel += kGroup) {
      Vec b[kV];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) {
        b[v] = load(panel + v * kLanes);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kR; ++r) {
        const float factor = a[r * left.pitch];
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) {
          sum[r][v] += factor * b[v];
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r) {
    Channels<kV> result;
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      result.v[v] = sum[r][v];
    }
    out(i + r, result);
  }
}

// out(i, first(i) + sum over k of left(i, k) * panel[k]) for all i < count.
template <int kV, typename First, typename Out>
SPNAS_INLINE void product(int64_t count, const Left &left, const float *panel, const First &first,
                          const Out &out) {
  constexpr int kRows = tile_rows<kV>();
  int64_t i = 0;
  for (; i + kRows <= count; i += kRows) {
    product_tile<kRows, kV>(i, left, panel, first, out);
  }
  if (kRows > 8 && i + 8 <= count) {
    product_tile<8, kV>(i, left, panel, first, out);
    i += 8;
  }
  if (i + 4 <= count) {
    product_tile<4, kV>(i, left, panel, first, out);
    i += 4;
  }
  for (; i < count; ++i) {
    product_tile<1, kV>(i, left, panel, first, out);
  }
}

template <int kR, int kV>
SPNAS_INLINE void outer_tile(float *sums, const float *left, int64_t left_pitch, const float *right,
                             int64_t right_pitch, int64_t count) {
  Vec sum[kR][kV] = {};
  for (int64_t i = 0; i < count; ++i, left += left_pitch, right += right_pitch) {
    Vec b[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      b[v] = load(right + v * kLanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) {
        sum[r][v] += left[r] * b[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      float *at = sums + r * kGroup + v * kLanes;
      store(at, load(at) + sum[r][v]);
    }
  }
}

// sums[r] += sum over i < count of left[i * left_pitch + r] * right[i * right_pitch], for r < rows;
// sums are (rows, 16), and of a row on the right kV vectors count.
//
// The sums of one call run in float: count should be a few hundred at most.
template <int kV>
inline void outer(float *sums, int64_t rows, const float *left, int64_t left_pitch,
                  const float *right, int64_t right_pitch, int64_t count) {
  constexpr int kRows = tile_rows<kV>();
  int64_t r = 0;
  const auto at = [&](int64_t r) { return sums + r * kGroup; };
  for (; r + kRows <= rows; r += kRows) {
    outer_tile<kRows, kV>(at(r), left + r, left_pitch, right, right_pitch, count);
  }
  if (kRows > 8 && r + 8 <= rows) {
    outer_tile<8, kV>(at(r), left + r, left_pitch, right, right_pitch, count);
    r += 8;
  }
  if (r + 4 <= rows) {
    outer_tile<4, kV>(at(r), left + r, left_pitch, right, right_pitch, count);
    r += 4;
  }
  for (; r < rows; ++r) {
    outer_tile<1, kV>(at(r), left + r, left_pitch, right, right_pitch, count);
  }
}

// The columns of a panel that are in use, as a type: all vectors of a group, or one.
template <int kV>
using Vectors = std::integral_constant<int, kV>;

// Calls body(first, count, Vectors) for every 16 of so many columns.
template <typename Body>
SPNAS_INLINE void for_panels(int64_t columns, const Body &body) {
  for (int64_t first = 0; first < columns; first += kGroup) {
    const int64_t count = std::min<int64_t>(kGroup, columns - first);
    if (kVecs > 1 && count <= kLanes) {
      body(first, count, Vectors<1>());
    } else {
      body(first, count, Vectors<kVecs>());
    }
  }
}

// The first `count` channels.
template <int kV>
SPNAS_INLINE void store_part(float *p, const Channels<kV> &c, int64_t count) {
  if (count == kV * kLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      store(p + v * kLanes, c.v[v]);
    }
  } else {
    std::memcpy(p, &c, count * sizeof(float));
  }
}

template <int kV>
SPNAS_INLINE Channels<kV> load_part(const float *p, int64_t count) {
  Channels<kV> c = {};
  if (count == kV * kLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      c.v[v] = load(p + v * kLanes);
    }
  } else {
    std::memcpy(&c, p, count * sizeof(float));
  }
  return c;
}

template <int kV>
SPNAS_INLINE Channels<kV> relu(Channels<kV> c) {
#pragma GCC unroll 4
  for (int v = 0; v < kV; ++v) {
    c.v[v] = relu(c.v[v]);
  }
  return c;
}

template <int kV>
SPNAS_INLINE void store_channels(float *p, const Channels<kV> &c) {
#pragma GCC unroll 4
  for (int v = 0; v < kV; ++v) {
    store(p + v * kLanes, c.v[v]);
  }
}

// The channels [first, first + 16) of an array that is as long as all groups.
template <int kV = kVecs>
SPNAS_INLINE Channels<kV> load_channels(const float *p) {
  return load_part<kV>(p, kV * kLanes);
}

}  // namespace spnas
