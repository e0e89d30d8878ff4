// bfloat16, the upper half of a float32: as many powers of two, and 8 bits of precision.
//
// Tensors and the factors of products are in it; whatever is summed is float.
#pragma once

#include <cstdint>
#include <cstring>

#include "vectors.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define SPNAS_BFLOAT16 1  // the processor multiplies it
#else
#define SPNAS_BFLOAT16 0  // results are the same but for the order of sums
#endif

namespace spnas {

// A vector's lanes as integers, and so many bfloat16.
typedef uint32_t Bits __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));

// The value that represents floats best, of two equally near the even one; NaN stays NaN.
template <typename Integers, typename Floats>
inline Integers round_to_upper_half(Integers bits, Floats value) {
  const Integers rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return value != value ? (bits >> 16) | 0x40 : rounded;
}

struct Bfloat16 {
  uint16_t bits;

  Bfloat16() = default;  // holds anything, as a float does
  explicit Bfloat16(float value) {
    uint32_t whole;
    std::memcpy(&whole, &value, sizeof(whole));
    bits = static_cast<uint16_t>(round_to_upper_half(whole, value));
  }

  operator float() const {
    const uint32_t whole = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &whole, sizeof(value));
    return value;
  }
};

// As MindSpore names the types of tensors.
template <typename T>
constexpr const char *type_name();
template <>
constexpr const char *type_name<float>() {
  return "float32";
}
template <>
constexpr const char *type_name<Bfloat16>() {
  return "bfloat16";
}

inline Bits widen(Halves halves) {
#if SPNAS_BFLOAT16  // for which GCC 12 takes five instructions otherwise
  return reinterpret_cast<Bits>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(halves)));
#else
  return __builtin_convertvector(halves, Bits);
#endif
}

inline Halves load_halves(const Bfloat16 *p) {
  Halves halves;
  std::memcpy(&halves, p, sizeof(halves));
  return halves;
}

inline Vec load(const Bfloat16 *p) { return reinterpret_cast<Vec>(widen(load_halves(p)) << 16); }

inline Halves narrow(Vec v) {
#if SPNAS_BFLOAT16
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(v));
#else
  return __builtin_convertvector(round_to_upper_half(reinterpret_cast<Bits>(v), v), Halves);
#endif
}

inline void store(Bfloat16 *p, Vec v) {
  const Halves halves = narrow(v);
  std::memcpy(p, &halves, sizeof(halves));
}

// As of floats.
template <int kV>
inline Channels<kV> load_some(const Bfloat16 *p, int64_t count) {
  Channels<kV> c;
#if SPNAS_BFLOAT16
  static_assert(kV == 1);
  c.v[0] = reinterpret_cast<Vec>(
      widen(reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16(first_lanes(count), p))) << 16);
#else
  Bfloat16 all[kV * kLanes] = {};
  std::memcpy(all, p, count * sizeof(*p));
  for (int v = 0; v < kV; ++v) {
    c.v[v] = load(all + v * kLanes);
  }
#endif
  return c;
}

template <int kV>
inline void store_some(Bfloat16 *p, const Channels<kV> &c, int64_t count) {
#if SPNAS_BFLOAT16
  _mm256_mask_storeu_epi16(p, first_lanes(count), reinterpret_cast<__m256i>(narrow(c.v[0])));
#else
  Bfloat16 all[kV * kLanes];
  for (int v = 0; v < kV; ++v) {
    store(all + v * kLanes, c.v[v]);
  }
  std::memcpy(p, all, count * sizeof(*p));
#endif
}

// Two bfloat16 per lane, of which a step of a product multiplies both: the pairs of two rows.
inline Bits pair_rows(const Bfloat16 *p, int64_t pitch) {
#if SPNAS_BFLOAT16
  if (pitch == kGroup) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return reinterpret_cast<Bits>(_mm512_permutexvar_epi16(order, _mm512_loadu_si512(p)));
  }
#endif
  return widen(load_halves(p)) | widen(load_halves(p + pitch)) << 16;
}

// sum += first * first factor + second * second factor
inline void add_pairs(Vec &sum, uint32_t factors, Bits pairs) {
#if SPNAS_BFLOAT16
  sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(Bits{} + factors),
                         reinterpret_cast<__m512bh>(pairs));
#else
  const uint32_t upper = 0xffff0000;
  sum += reinterpret_cast<Vec>(Bits{} + (factors & upper)) * reinterpret_cast<Vec>(pairs & upper);
  sum += reinterpret_cast<Vec>(Bits{} + (factors << 16)) * reinterpret_cast<Vec>(pairs << 16);
#endif
}

}  // namespace spnas
