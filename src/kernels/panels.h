// Weights in the order in which products read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "arena.h"
#include "products.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

// A panel (depth, 16) for every 16 of so many columns: value(k, column), and 0 behind the last one
// and below the last row. Rows that a product takes in one step lie interleaved.
template <typename T = float, typename Value>
T *pack_panels(Arena &arena, int64_t columns, int64_t depth, const Value &value) {
  constexpr int kDepth = Step<T>::kDepth;
  const int64_t size = panel_size<T>(depth);
  T *panels = arena.take<T>(group_count(columns) * size);
  const int64_t group = std::max<int64_t>(1, kGrain / size);
  // Nothing in it can fail.
  static_cast<void>(parallel(group_count(columns), group, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t count = group_size(columns, panel);
      T *out = panels + panel * size;
      for (int64_t k = 0; k < depth; k += kDepth, out += kDepth * kGroup) {
        float rows[kDepth][kGroup] = {};
        for (int row = 0; row < kDepth && k + row < depth; ++row) {
          for (int64_t j = 0; j < count; ++j) {
            rows[row][j] = value(k + row, panel * kGroup + j);
          }
        }
        Step<T>::pack(out, rows);
      }
    }
  }));
  return panels;
}

}  // namespace spnas
