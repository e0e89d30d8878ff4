// Weights in the order in which products read them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "arena.h"
#include "tasks.h"
#include "vectors.h"

namespace spnas {

// A panel (depth, 16) for every 16 of so many columns: value(k, column), and 0 behind the last one.
template <typename Value>
float *pack_panels(Arena &arena, int64_t columns, int64_t depth, const Value &value) {
  float *panels = arena.take(group_count(columns) * depth * kGroup);
  const int64_t group = std::max<int64_t>(1, kGrain / (depth * kGroup));
  // Nothing in it can fail.
  static_cast<void>(parallel(group_count(columns), group, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t count = group_size(columns, panel);
      float *out = panels + panel * depth * kGroup;
      for (int64_t k = 0; k < depth; ++k, out += kGroup) {
        for (int64_t j = 0; j < kGroup; ++j) {
          out[j] = j < count ? value(k, panel * kGroup + j) : 0;
        }
      }
    }
  }));
  return panels;
}

}  // namespace spnas
