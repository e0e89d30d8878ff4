// Vectors of floats, as wide as the processor that is compiled for, and short copies.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace spnas {

// Floats per vector.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
// The same at any address, and allowed to alias floats.
typedef float VecAny __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

// Channels that lie together in tensors within a block, and their vectors.
constexpr int kGroup = 16, kVecs = kGroup / kLanes;

// kV vectors of one pixel's channels: a group, or the first part of one.
template <int kV>
struct Channels {
  Vec v[kV];
};

// Groups that hold so many channels, and how many of them group g has.
inline int64_t group_count(int64_t channels) { return (channels + kGroup - 1) / kGroup; }
inline int64_t group_size(int64_t channels, int64_t g) {
  return channels - g * kGroup < kGroup ? channels - g * kGroup : kGroup;
}

inline Vec load(const float *p) { return *reinterpret_cast<const VecAny *>(p); }
inline void store(float *p, Vec v) { *reinterpret_cast<VecAny *>(p) = v; }

// The first `count` floats of kV vectors; the others are 0, or stay.
#if defined(__AVX512F__)
inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
#endif
template <int kV>
inline Channels<kV> load_some(const float *p, int64_t count) {
#if defined(__AVX512F__)
  return {_mm512_maskz_loadu_ps(first_lanes(count), p)};
#else
  Channels<kV> c = {};
  std::memcpy(&c, p, count * sizeof(*p));
  return c;
#endif
}
template <int kV>
inline void store_some(float *p, const Channels<kV> &c, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, first_lanes(count), c.v[0]);
#else
  std::memcpy(p, &c, count * sizeof(*p));
#endif
}

// 0 for what is less; NaN passes.
template <typename V>
inline V relu(V v) {
  return v < 0 ? V{} : v;
}
#if defined(__AVX512F__)  // in one instruction, which gives its second operand for NaN and for -0
inline Vec relu(Vec v) { return _mm512_max_ps(Vec{}, v); }
#endif

// The same, and `ceiling` for what is more.
inline Vec relu(Vec v, float ceiling) {
  v = relu(v);
  return v > ceiling ? Vec{} + ceiling : v;
}

// The gradient of what has passed this.
inline Vec relu_gradient(Vec v, float ceiling, Vec gradient) {
  return (v > 0) & (v < ceiling) ? gradient : Vec{};
}

// Two overlapping copies of a fixed size, which the compiler turns into vector moves.
template <int64_t kSize>
inline void copy_ends(float *dst, const float *src, int64_t n) {
  float first[kSize], last[kSize];
  std::memcpy(first, src, sizeof(first));
  std::memcpy(last, src + n - kSize, sizeof(last));
  std::memcpy(dst, first, sizeof(first));
  std::memcpy(dst + n - kSize, last, sizeof(last));
}

// memcpy for the short rows of small planes, where calling it would cost more than copying.
inline void copy_row(float *dst, const float *src, int64_t n) {
  if (n < 4 || n > 32) {
    std::memcpy(dst, src, n * sizeof(float));
  } else if (n <= 8) {
    copy_ends<4>(dst, src, n);
  } else if (n <= 16) {
    copy_ends<8>(dst, src, n);
  } else {
    copy_ends<16>(dst, src, n);
  }
}

// The sum of a vector's floats: its halves are added until one float is left.
inline float sum_lanes(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lanes[i] += lanes[i + half];
    }
  }
  return lanes[0];
}

}  // namespace spnas
