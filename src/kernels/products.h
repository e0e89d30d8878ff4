// Matrix products whose right side is a panel: 16 columns, row by row.
//
// Both hold a tile of sums in registers. On two cores they run at the speed of a large product of
// a BLAS, from matrices that lie in memory as the layers have them. Factors are float or bfloat16,
// of which a step takes two at a time; sums are float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "bfloat16.h"
#include "scratch.h"
#include "tiles.h"
#include "vectors.h"

namespace spnas {

#define SPNAS_ALWAYS __attribute__((always_inline))
#define SPNAS_INLINE inline SPNAS_ALWAYS

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

// What a product multiplies in one step: kDepth factors, with as many rows of 16 columns that lie
// interleaved in a panel, or one after the other.
template <typename T>
struct Step;

template <>
struct Step<float> {
  static constexpr int kDepth = 1;
  static float factors(const float *p) { return *p; }
  static void pack(float *panel, const float (&rows)[1][kGroup]) {
    std::memcpy(panel, rows, sizeof(rows));
  }
  static Vec panel(const float *p) { return load(p); }
  static Vec rows(const float *p, int64_t) { return load(p); }
  static void add(Vec &sum, float factor, Vec row) { sum += factor * row; }
};

template <>
struct Step<Bfloat16> {
  static constexpr int kDepth = 2;
  static uint32_t factors(const Bfloat16 *p) {
    uint32_t both;
    std::memcpy(&both, p, sizeof(both));
    return both;
  }
  static void pack(Bfloat16 *panel, const float (&rows)[2][kGroup]) {
    for (int j = 0; j < kGroup; j += kLanes) {
      const Bits pairs = widen(narrow(load(rows[0] + j))) | widen(narrow(load(rows[1] + j))) << 16;
      std::memcpy(panel + 2 * j, &pairs, sizeof(pairs));
    }
  }
  static Bits panel(const Bfloat16 *p) {
    Bits pairs;
    std::memcpy(&pairs, p, sizeof(pairs));
    return pairs;
  }
  static Bits rows(const Bfloat16 *p, int64_t pitch) { return pair_rows(p, pitch); }
  static void add(Vec &sum, uint32_t factors, Bits pairs) { add_pairs(sum, factors, pairs); }
  // The last step of an odd depth.
  static uint32_t last_factor(const Bfloat16 *p) { return p->bits; }
  static Bits last_row(const Bfloat16 *p) { return widen(load_halves(p)); }
};

// Elements of a panel of so many rows.
template <typename T>
constexpr int64_t panel_size(int64_t depth) {
  return (depth + Step<T>::kDepth - 1) / Step<T>::kDepth * Step<T>::kDepth * kGroup;
}

// The left side of a product: element (i, k) of segment s is data[s * stride + i * pitch + k], for
// k < depth. The panel has the rows of all segments, one segment after the other.
template <typename T>
struct Left {
  const T *data;
  int64_t pitch, depth;
  int64_t segments = 1, stride = 0;
};

template <int kR, int kV, typename T, typename First, typename Out>
SPNAS_INLINE void product_tile(int64_t i, const Left<T> &left, const T *panel, const First &first,
                               const Out &out) {
  using Step = spnas::Step<T>;
  constexpr int kDepth = Step::kDepth;
  Vec sum[kR][kV];
#pragma GCC unroll 16
  for (int r = 0; r < kR; ++r) {
    const Channels<kV> start = first(i + r);
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      sum[r][v] = start.v[v];
    }
  }
  // With rows(v) of the panel and the factors of row r.
  const auto add = [&](const auto &rows, const auto &factors) SPNAS_ALWAYS {
    decltype(rows(0)) b[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      b[v] = rows(v);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
      const auto factor = factors(r);
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) {
        Step::add(sum[r][v], factor, b[v]);
      }
    }
  };
  const T *segment = left.data + i * left.pitch;
  for (int64_t s = 0; s < left.segments; ++s, segment += left.stride) {
    const T *a = segment;
    const auto rows = [&](int v) { return Step::panel(panel + v * kLanes * kDepth); };
    for (int64_t k = kDepth; k <= left.depth; k += kDepth, a += kDepth, panel += kDepth * kGroup) {
      add(rows, [&](int r) { return Step::factors(a + r * left.pitch); });
    }
    if constexpr (kDepth > 1) {
      if (left.depth % kDepth != 0) {
        add(rows, [&](int r) { return Step::last_factor(a + r * left.pitch); });
        panel += kDepth * kGroup;
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

#if SPNAS_TILES
// A product by matrix tiles as far as they fill whole ones; returns the number of its rows.
template <typename First, typename Out>
inline int64_t product_by_tiles(int64_t count, const Left<Bfloat16> &left, const Bfloat16 *panel,
                                const First &first, const Out &out) {
  if (count < kTileRows || left.depth % 2 != 0 || !tiles_allowed()) {
    return 0;
  }
  const TileSizes sizes(left.depth % kTileDepth);
  load_sizes(sizes);
  alignas(64) float sums[2 * kTileRows * kGroup];
  int64_t i = 0;
  while (i + kTileRows <= count) {
    const Bfloat16 *rows = left.data + i * left.pitch;
    const int now = i + 2 * kTileRows <= count ? 2 * kTileRows : kTileRows;
    (now > kTileRows ? tile_sums<2> : tile_sums<1>)(sums, rows, left.pitch, left.depth,
                                                    left.segments, left.stride, panel);
    for (int r = 0; r < now; ++r, ++i) {
      Channels<1> result = first(i);
      result.v[0] += load(sums + r * kGroup);
      out(i, result);
    }
  }
  _tile_release();
  return i;
}
#endif

// out(i, first(i) + sum over k of left(i, k) * panel[k]) for all i < count.
template <int kV, typename T, typename First, typename Out>
SPNAS_INLINE void product(int64_t count, const Left<T> &left, const T *panel, const First &first,
                          const Out &out) {
  constexpr int kRows = tile_rows<kV>();
  int64_t i = 0;
#if SPNAS_TILES
  if constexpr (std::is_same_v<T, Bfloat16>) {
    i = product_by_tiles(count, left, panel, first, out);
  }
#endif
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

template <int kR, int kV, typename T>
SPNAS_INLINE void outer_tile(float *sums, const T *left, int64_t left_pitch, const T *right,
                             int64_t right_pitch, int64_t count) {
  using Step = spnas::Step<T>;
  constexpr int kDepth = Step::kDepth;
  Vec sum[kR][kV] = {};
  const auto add = [&](const auto &rows) SPNAS_ALWAYS {
    decltype(rows(0)) b[kV];
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      b[v] = rows(v);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) {
        Step::add(sum[r][v], Step::factors(left + r * kDepth), b[v]);
      }
    }
  };
  for (int64_t i = kDepth; i <= count; i += kDepth) {
    add([&](int v) { return Step::rows(right + v * kLanes, right_pitch); });
    left += kDepth * left_pitch, right += kDepth * right_pitch;
  }
  if constexpr (kDepth > 1) {
    if (count % kDepth != 0) {
      add([&](int v) { return Step::last_row(right + v * kLanes); });
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

#if SPNAS_TILES
// What outer() adds to whole tiles of rows; returns the number of rows. A tile's left side has a
// column of the right side per row, so that sums come out turned.
inline int64_t outer_by_tiles(float *sums, int64_t rows, const Bfloat16 *left, int64_t left_pitch,
                              const Bfloat16 *right, int64_t right_pitch, int64_t count) {
  if (rows < kTileRows || count < kTileDepth || !tiles_allowed()) {
    return 0;
  }
  constexpr int64_t kPairs = kTileDepth / 2, kTile = kTileRows * kPairs;
  auto *turned = scratch<uint32_t>(Slot::kTurned, (count + kTileDepth) / kTileDepth * kTile);
  for (int64_t i = 0; i < count; i += 2) {
    const Bfloat16 *row = right + i * right_pitch;
    const Bits pairs = i + 1 < count ? pair_rows(row, right_pitch) : widen(load_halves(row));
    uint32_t *out = turned + i / kTileDepth * kTile + i % kTileDepth / 2;
    for (int j = 0; j < kGroup; ++j) {
      out[j * kPairs] = pairs[j];
    }
  }
  const int64_t depth = (count + 1) / 2 * 2, rest = depth % kTileDepth, whole = depth / kTileDepth;
  const int64_t bytes = 2 * left_pitch * sizeof(Bfloat16);
  const TileSizes sizes(rest);
  load_sizes(sizes);
  alignas(64) float products[kGroup * kTileRows];
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    const Bfloat16 *pairs = left + 2 * r;
    const uint32_t *own = turned;
    _tile_zero(0);
    for (int64_t i = 0; i < whole; ++i, own += kTile, pairs += kTileDepth * left_pitch) {
      _tile_loadd(2, own, kTileBytes);
      _tile_loadd(4, pairs, bytes);
      _tile_dpbf16ps(0, 2, 4);
    }
    if (rest > 0) {
      _tile_loadd(5, own, kTileBytes);
      _tile_loadd(7, pairs, bytes);
      _tile_dpbf16ps(0, 5, 7);
    }
    _tile_stored(0, products, kTileBytes);
    for (int i = 0; i < kTileRows; ++i) {
      for (int j = 0; j < kGroup; ++j) {
        sums[(r + i) * kGroup + j] += products[j * kTileRows + i];
      }
    }
  }
  _tile_release();
  return r;
}
#endif

// sums[r] += sum over i < count of left[i * left_pitch + r] * right[i * right_pitch], for r < rows;
// sums are (rows, 16), and of a row on the right kV vectors count. Of bfloat16 the left side has
// pixels in pairs, see pair_pixels().
//
// The sums of one call run in float: count should be a few hundred at most.
template <int kV, typename T>
inline void outer(float *sums, int64_t rows, const T *left, int64_t left_pitch, const T *right,
                  int64_t right_pitch, int64_t count) {
  constexpr int kDepth = Step<T>::kDepth;
  constexpr int kRows = tile_rows<kV>();
  int64_t r = 0;
#if SPNAS_TILES
  if constexpr (std::is_same_v<T, Bfloat16>) {
    r = outer_by_tiles(sums, rows, left, left_pitch, right, right_pitch, count);
  }
#endif
  const auto at = [&](int64_t r) { return sums + r * kGroup; };
  for (; r + kRows <= rows; r += kRows) {
    outer_tile<kRows, kV>(at(r), left + r * kDepth, left_pitch, right, right_pitch, count);
  }
  if (kRows > 8 && r + 8 <= rows) {
    outer_tile<8, kV>(at(r), left + r * kDepth, left_pitch, right, right_pitch, count);
    r += 8;
  }
  if (r + 4 <= rows) {
    outer_tile<4, kV>(at(r), left + r * kDepth, left_pitch, right, right_pitch, count);
    r += 4;
  }
  for (; r < rows; ++r) {
    outer_tile<1, kV>(at(r), left + r * kDepth, left_pitch, right, right_pitch, count);
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
template <int kV, typename T>
SPNAS_INLINE void store_part(T *p, const Channels<kV> &c, int64_t count) {
  if (count == kV * kLanes) {
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      store(p + v * kLanes, c.v[v]);
    }
  } else {
    store_some(p, c, count);
  }
}

template <int kV, typename T>
SPNAS_INLINE Channels<kV> load_part(const T *p, int64_t count) {
  if (count != kV * kLanes) {
    return load_some<kV>(p, count);
  }
  Channels<kV> c;
#pragma GCC unroll 4
  for (int v = 0; v < kV; ++v) {
    c.v[v] = load(p + v * kLanes);
  }
  return c;
}

// body(c, count) for every vector of so many channels, of which the last may be filled in part.
template <typename Body>
SPNAS_INLINE void for_vectors(int64_t channels, const Body &body) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    body(c, kLanes);
  }
  if (c < channels) {
    body(c, channels - c);
  }
}

template <typename T>
SPNAS_INLINE Vec load_lanes(const T *p, int64_t count) {
  return load_part<1>(p, count).v[0];
}
template <typename T>
SPNAS_INLINE void store_lanes(T *p, Vec v, int64_t count) {
  store_part(p, Channels<1>{v}, count);
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
SPNAS_INLINE Channels<kV> relu(Channels<kV> c, float ceiling) {
#pragma GCC unroll 4
  for (int v = 0; v < kV; ++v) {
    c.v[v] = relu(c.v[v], ceiling);
  }
  return c;
}

template <int kV, typename T>
SPNAS_INLINE void store_channels(T *p, const Channels<kV> &c) {
#pragma GCC unroll 4
  for (int v = 0; v < kV; ++v) {
    store(p + v * kLanes, c.v[v]);
  }
}

// The first 16 channels from p on, of an array that is as long as all groups.
template <int kV = kVecs, typename T>
SPNAS_INLINE Channels<kV> load_channels(const T *p) {
  return load_part<kV>(p, kV * kLanes);
}

}  // namespace spnas
