// Entry points of the operators, as ops.Custom(func_type="aot") calls them.
#pragma once

#include "call.h"
#include "profile.h"

#define SPNAS_OPERATOR(name, ...)                                                          \
  extern "C" __attribute__((visibility("default"))) int name(                              \
      int count, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *, \
      void *) {                                                                            \
    using namespace spnas;                                                                 \
    const Call call{count, params, ndims, shapes, dtypes};                                 \
    return profiled(#name, call, [&] { return guarded([&] { return __VA_ARGS__; }); });    \
  }
