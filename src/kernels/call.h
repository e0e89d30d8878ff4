// The call of an operator: its parameters, their shapes and types, and the checks of them.
//
// Tensors are float32 unless an operator says otherwise. Parameters are the inputs and then the
// outputs of an operator; each operator names their places in an enum. Anything but the shapes and
// types that it expects makes an operator return non-zero, upon which MindSpore raises.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>

#include "bfloat16.h"

namespace spnas {

enum Status { kOk = 0, kBadCount = 1, kBadType = 2, kBadShape = 3, kFailed = 4, kBadValue = 5 };

// The places of parameters from `first` to before `last`.
struct Range {
  int first, last;
};

// The parameters of a call.
struct Call {
  int count;
  void **params;
  int *ndims;
  int64_t **shapes;
  const char **dtypes;

  // kOk if there are `expected` parameters, those at `places` of type T and all others float32.
  template <typename T = float>
  Status check(int expected, std::initializer_list<int> places = {}) const {
    if (count != expected) {
      return kBadCount;
    }
    for (int i = 0; i < count; ++i) {
      const bool other = std::find(places.begin(), places.end(), i) != places.end();
      const char *type = other ? type_name<T>() : type_name<float>();
      if (dtypes[i] == nullptr || std::strcmp(dtypes[i], type) != 0) {
        return kBadType;
      }
    }
    return kOk;
  }

  bool is_shape(int i, std::initializer_list<int64_t> shape) const {
    return ndims[i] == static_cast<int>(shape.size()) &&
           std::equal(shape.begin(), shape.end(), shapes[i]);
  }

  // Whether all these parameters are (channels,).
  bool are_channels(std::initializer_list<Range> ranges, int64_t channels) const {
    for (const Range &range : ranges) {
      for (int i = range.first; i < range.last; ++i) {
        if (!is_shape(i, {channels})) {
          return false;
        }
      }
    }
    return true;
  }

  // Elements of a parameter.
  int64_t size(int i) const {
    int64_t size = 1;
    for (int d = 0; d < ndims[i]; ++d) {
      size *= shapes[i][d];
    }
    return size;
  }

  template <typename T = float>
  T *data(int i) const {
    return static_cast<T *>(params[i]);
  }
};

// The shape of a parameter that is (N, C, H, W), or of a weight, (outputs, inputs, height, width).
struct Shape {
  int64_t n, c, h, w;

  Shape(const Call &call, int i)
      : n(call.shapes[i][0]), c(call.shapes[i][1]), h(call.shapes[i][2]), w(call.shapes[i][3]) {}

  int64_t plane() const { return h * w; }
  int64_t channel() const { return n * h * w; }
  bool valid() const { return n > 0 && c > 0 && h > 0 && w > 0; }
};

inline bool same_shape(const Call &call, int i, int j) {
  return call.ndims[i] == call.ndims[j] &&
         std::equal(call.shapes[i], call.shapes[i] + call.ndims[i], call.shapes[j]);
}

// kOk if parameter x is (N, C, H, W) and each parameter in `channels` is (C,).
inline Status check_channels(const Call &call, int x, std::initializer_list<Range> channels) {
  if (call.ndims[x] != 4 || !Shape(call, x).valid()) {
    return kBadShape;
  }
  return call.are_channels(channels, Shape(call, x).c) ? kOk : kBadShape;
}

// Kernel sizes that the convolutions know.
inline bool is_kernel(int64_t k) { return k == 3 || k == 5 || k == 7; }

// Whether parameter y is what a convolution with this stride, padded by k / 2 on all sides, makes
// of x.
inline bool is_output(const Call &call, int y, const Shape &x, int64_t channels, int stride) {
  return call.is_shape(y, {x.n, channels, (x.h - 1) / stride + 1, (x.w - 1) / stride + 1});
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
