// What all operators share: the parameters of a call, scratch memory, and the division into tasks.
//
// All tensors are float32 in NCHW order. Parameters are the inputs and then the outputs of an
// operator; anything else than the shapes and types it expects makes it return non-zero, upon which
// MindSpore raises. Work is divided by planes or channels, never by the number of threads, so
// results do not depend on it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <vector>

#include "pool.h"

namespace spnas {

enum Status { kOk = 0, kBadCount = 1, kBadType = 2, kBadShape = 3, kFailed = 4 };

// Floats of work that are worth a task of their own.
constexpr int64_t kGrain = 16384;

// The parameters of a call.
struct Call {
  int count;
  void **params;
  int *ndims;
  int64_t **shapes;
  const char **dtypes;

  // kOk if there are `expected` parameters, all of them float32.
  Status check(int expected) const {
    if (count != expected) {
      return kBadCount;
    }
    for (int i = 0; i < count; ++i) {
      if (dtypes[i] == nullptr || std::strcmp(dtypes[i], "float32") != 0) {
        return kBadType;
      }
    }
    return kOk;
  }

  bool is_shape(int i, std::initializer_list<int64_t> shape) const {
    return ndims[i] == static_cast<int>(shape.size()) &&
           std::equal(shape.begin(), shape.end(), shapes[i]);
  }

  float *data(int i) const { return static_cast<float *>(params[i]); }
};

struct Shape {
  int64_t n, c, h, w;

  Shape(const Call &call, int i)
      : n(call.shapes[i][0]), c(call.shapes[i][1]), h(call.shapes[i][2]), w(call.shapes[i][3]) {}

  int64_t plane() const { return h * w; }
  int64_t channel() const { return n * h * w; }
  bool valid() const { return n > 0 && c > 0 && h > 0 && w > 0; }
};

constexpr int kSlots = 5;

// A thread's scratch memory, grown as needed and kept. Slots are independent of each other.
inline float *scratch(int slot, int64_t size) {
  static thread_local std::vector<float> buffers[kSlots];
  std::vector<float> &buffer = buffers[slot];
  if (static_cast<int64_t>(buffer.size()) < size) {
    buffer.resize(size);
  }
  return buffer.data();
}

inline float *zeroed(int slot, int64_t size) {
  float *data = scratch(slot, size);
  std::memset(data, 0, size * sizeof(float));
  return data;
}

inline bool same_shape(const Call &call, int i, int j) {
  return call.ndims[i] == call.ndims[j] &&
         std::equal(call.shapes[i], call.shapes[i] + call.ndims[i], call.shapes[j]);
}

// kOk if parameter x is (N, C, H, W) and each of `channels` is (C,).
inline Status check_channels(const Call &call, int x, std::initializer_list<int> channels) {
  if (call.ndims[x] != 4 || !Shape(call, x).valid()) {
    return kBadShape;
  }
  for (int i : channels) {
    if (!call.is_shape(i, {Shape(call, x).c})) {
      return kBadShape;
    }
  }
  return kOk;
}

// Kernel sizes that the convolutions know.
inline bool is_kernel(int64_t k) { return k == 3 || k == 5 || k == 7; }

// Whether parameter y is what a convolution with this stride, padded by k / 2 on all sides, makes
// of x.
inline bool is_output(const Call &call, int y, const Shape &x, int64_t channels, int stride) {
  return call.is_shape(y, {x.n, channels, (x.h - 1) / stride + 1, (x.w - 1) / stride + 1});
}

// Channels of a task: small planes go together, since memory is read best in long runs.
constexpr int64_t kRun = 1024, kMaxGroup = 32;

inline int64_t channel_group(int64_t plane, int64_t limit = kMaxGroup) {
  return std::max<int64_t>(1, std::min(limit, kRun / plane));
}

// Calls task(first, last) for consecutive ranges of [0, count).
template <typename Task>
Status parallel(int64_t count, int64_t group, const Task &task) {
  const int64_t tasks = (count + group - 1) / group;
  const bool ok = Pool::instance().run(
      tasks, [&](int64_t i) { task(i * group, std::min(count, (i + 1) * group)); });
  return ok ? kOk : kFailed;
}

// Runs an operator; no exception may reach the C caller.
template <typename Operator>
int guarded(const Operator &run) {
  try {
    return run();
  } catch (const std::exception &) {
    return kFailed;
  }
}

}  // namespace spnas
