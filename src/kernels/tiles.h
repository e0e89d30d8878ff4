// Products by the processor's matrix tiles (AMX): one instruction multiplies 16 rows of 32 bfloat16
// by as many rows of a panel, whose rows lie in pairs as a tile wants them.
#pragma once

#include <cstdint>

#include "bfloat16.h"
#include "vectors.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && SPNAS_BFLOAT16 && defined(__linux__)
#define SPNAS_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define SPNAS_TILES 0
#endif

namespace spnas {

constexpr int kTileRows = 16, kTileDepth = 32, kTileBytes = 64;  // bytes of a row

#if SPNAS_TILES

// Whether the kernel lets this process use them; it has to be asked.
inline bool tiles_allowed() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl(2)
  static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return allowed;
}

// Tiles 0 and 1 are sums of 16 rows each, 2 and 3 their left sides, 4 is a panel's rows; 5, 6 and 7
// are left sides and panel of what a depth leaves behind the last 32. (Instructions take the number
// as a literal.)
struct alignas(64) TileSizes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit TileSizes(int64_t rest) {
    for (int tile = 0; tile <= 4; ++tile) {
      rows[tile] = kTileRows, row_bytes[tile] = kTileBytes;
    }
    if (rest > 0) {
      rows[5] = rows[6] = kTileRows, row_bytes[5] = row_bytes[6] = 2 * rest;
      rows[7] = rest / 2, row_bytes[7] = kTileBytes;
    }
  }
};

inline void load_sizes(const TileSizes &sizes) {
  // The compiler does not see that sizes and tiles are read from memory.
  asm volatile("" ::"r"(&sizes) : "memory");
  _tile_loadconfig(&sizes);
}

// Sums (16 kBlocks, 16) of so many rows of the left side, which begin at `rows`: segments of
// `depth` elements, one every `stride`; `pitch` elements from row to row.
template <int kBlocks>
inline void tile_sums(float *sums, const Bfloat16 *rows, int64_t pitch, int64_t depth,
                      int64_t segments, int64_t stride, const Bfloat16 *panel) {
  const int64_t bytes = pitch * sizeof(Bfloat16), rest = depth % kTileDepth;
  _tile_zero(0);
  if (kBlocks > 1) {
    _tile_zero(1);
  }
  for (int64_t s = 0; s < segments; ++s, rows += stride) {
    const Bfloat16 *left = rows;
    for (int64_t k = kTileDepth; k <= depth; k += kTileDepth, left += kTileDepth) {
      _tile_loadd(4, panel, kTileBytes);
      _tile_loadd(2, left, bytes);
      _tile_dpbf16ps(0, 2, 4);
      if (kBlocks > 1) {
        _tile_loadd(3, left + kTileRows * pitch, bytes);
        _tile_dpbf16ps(1, 3, 4);
      }
      panel += kTileDepth * kGroup;
    }
    if (rest > 0) {
      _tile_loadd(7, panel, kTileBytes);
      _tile_loadd(5, left, bytes);
      _tile_dpbf16ps(0, 5, 7);
      if (kBlocks > 1) {
        _tile_loadd(6, left + kTileRows * pitch, bytes);
        _tile_dpbf16ps(1, 6, 7);
      }
      panel += rest * kGroup;
    }
  }
  _tile_stored(0, sums, kTileBytes);
  if (kBlocks > 1) {
    _tile_stored(1, sums + kTileRows * kGroup, kTileBytes);
  }
}

#endif

}  // namespace spnas
