// Seconds of every call, for benchmarks/step_profile.py: one JSON object per line in the file that
// SPNAS_KERNEL_PROFILE names.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "call.h"

namespace spnas {

// Opened with the first call; null where nobody asks for a profile.
inline std::FILE *profile_file() {
  static std::FILE *file = [] {
    const char *path = std::getenv("SPNAS_KERNEL_PROFILE");
    return path == nullptr || *path == '\0' ? nullptr : std::fopen(path, "w");
  }();
  return file;
}

template <typename Operator>
int profiled(const char *name, const Call &call, const Operator &run) {
  std::FILE *file = profile_file();
  if (file == nullptr) {
    return run();
  }
  const auto start = std::chrono::steady_clock::now();
  const int status = run();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  // The shape of the first parameter tells layers apart.
  std::fprintf(file, "{\"operator\": \"%s\", \"seconds\": %.9f, \"shape\": [", name,
               seconds.count());
  for (int d = 0; call.count > 0 && d < call.ndims[0]; ++d) {
    std::fprintf(file, "%s%lld", d == 0 ? "" : ", ", static_cast<long long>(call.shapes[0][d]));
  }
  std::fprintf(file, "]}\n");
  std::fflush(file);
  return status;
}

}  // namespace spnas
