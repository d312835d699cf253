// The two 16-bit floating types on the CPU, for kernels that know no torch: stored as bits, computed with as float.
// The conversions have no branch, so that a loop over them becomes vector code.
#pragma once

#include <cstdint>
#include <cstring>

namespace libra {

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// IEEE half: 5 bits of exponent, 10 of mantissa.
struct Half {
  uint16_t bits;
};

// The upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

// What a kernel computes in: double for double, else float.
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

inline float to_number(float value) { return value; }
inline double to_number(double value) { return value; }
inline float to_number(BFloat16 value) { return bits_as<float>(static_cast<uint32_t>(value.bits) << 16); }
inline float to_number(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
  // As a float these bits are too small by 2^112, denormal numbers too.
  const float finite = bits_as<float>(rest << 13) * 0x1p112f;
  const uint32_t magnitude = rest >= 0x7c00 ? 0x7f800000 | (rest & 0x3ff) << 13 : bits_as<uint32_t>(finite);
  return bits_as<float>(sign | magnitude);
}

// Rounded to nearest, ties to even; a NaN stays one.
inline void from_number(float value, float& to) { to = value; }
inline void from_number(double value, double& to) { to = value; }
inline void from_number(float value, BFloat16& to) {
  const uint32_t wide = bits_as<uint32_t>(value);
  const uint32_t rounded = (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
  to.bits = static_cast<uint16_t>((wide & 0x7fffffff) > 0x7f800000 ? 0x7fff : rounded);
}
inline void from_number(float value, Half& to) {
  const uint32_t wide = bits_as<uint32_t>(value), sign = wide >> 16 & 0x8000, magnitude = wide & 0x7fffffff;
  // Below 2^-14 the result is a multiple of 2^-24, which adding 0.5 rounds to.
  const uint32_t small = bits_as<uint32_t>(bits_as<float>(magnitude < 0x38800000 ? magnitude : 0) + 0.5f) - 0x3f000000;
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const uint32_t beyond = magnitude > 0x7f800000 ? 0x7fff : 0x7c00;
  to.bits = static_cast<uint16_t>(sign | (magnitude >= 0x477ff000 ? beyond : magnitude < 0x38800000 ? small : normal));
}

}  // namespace libra
