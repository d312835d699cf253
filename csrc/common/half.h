// float16 and bfloat16 on the CPU, as they lie in memory, to and from float32 in code that compilers vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace libra {

namespace detail {

inline __attribute__((always_inline)) float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline __attribute__((always_inline)) uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace detail

// The upper half of a float32. Rounded to nearest, ties to even; a NaN stays one.
struct BFloat16 {
  uint16_t bits;

  inline __attribute__((always_inline)) operator float() const {
    return detail::float_of_bits(static_cast<uint32_t>(bits) << 16);
  }
  inline __attribute__((always_inline)) static BFloat16 from(float value) {
    const uint32_t all = detail::bits_of_float(value), rounded = all + 0x7fffu + (all >> 16 & 1u);
    const bool nan = (all & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<uint16_t>((nan ? all | 0x400000u : rounded) >> 16)};
  }
};

// IEEE binary16: 5 bits of exponent, 10 of mantissa. Rounded to nearest, ties to even; a NaN stays one.
struct Half {
  uint16_t bits;

  inline __attribute__((always_inline)) operator float() const {
    const uint32_t size = static_cast<uint32_t>(bits & 0x7fffu) << 13;
    uint32_t wide = detail::bits_of_float(detail::float_of_bits(size) * 0x1p112f);  // exact, subnormals too
    wide |= size >= 0x0f800000u ? 0x7f800000u : 0u;                                 // infinity and NaN
    return detail::float_of_bits(wide | static_cast<uint32_t>(bits & 0x8000u) << 16);
  }
  inline __attribute__((always_inline)) static Half from(float value) {
    const uint32_t all = detail::bits_of_float(value), size = all & 0x7fffffffu;
    const uint32_t normal = ((size + 0xfffu + (size >> 13 & 1u)) >> 13) - (112u << 10);
    // 2^-24, what a subnormal counts, is the last place of 0.5
    const uint32_t subnormal = detail::bits_of_float(detail::float_of_bits(size) + 0.5f) - 0x3f000000u;
    uint32_t half = size < 0x38800000u ? subnormal : normal;
    half = size >= 0x477ff000u ? 0x7c00u : half;
    half = size > 0x7f800000u ? 0x7e00u : half;
    return {static_cast<uint16_t>(half | (all >> 16 & 0x8000u))};
  }
};

// What a formula computes in: double for double, else float.
template <class S>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <class S>
using Arithmetic = typename ArithmeticOf<S>::type;

}  // namespace libra
