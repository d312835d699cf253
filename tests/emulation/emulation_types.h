// The words of CUDA C++ that need no scheduler: qualifiers, vector types, half precision, bit casts, integer and float
// intrinsics. Only what the kernels in csrc use. Floating point is the host compiler's, without FMA contraction, so
// results may differ from a GPU's in the last bit: tests compare with tolerances, or use the __f*_rn intrinsics.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Aligned as on the device: the build traps on a misaligned vector load.
#define EMULATION_VECTORS(type, name, pair_alignment, quad_alignment)         \
  struct alignas(pair_alignment) name##2 { type x, y; };                      \
  struct name##3 { type x, y, z; };                                           \
  struct alignas(quad_alignment) name##4 { type x, y, z, w; };                \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATION_VECTORS(float, float, 8, 16)
EMULATION_VECTORS(double, double, 16, 16)
EMULATION_VECTORS(int, int, 8, 16)
EMULATION_VECTORS(signed char, char, 2, 4)
EMULATION_VECTORS(unsigned char, uchar, 2, 4)
EMULATION_VECTORS(long long, longlong, 16, 16)
#undef EMULATION_VECTORS
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulation {
template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
// Keeps an argument out of template deduction, so that atomicAdd(&unsigned_value, 1) means what it does in CUDA.
template <class T>
struct identity {
  using type = T;
};
template <class T>
using identity_t = typename identity<T>::type;
}  // namespace emulation

inline float __uint_as_float(unsigned bits) { return emulation::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return emulation::bit_cast<unsigned>(value); }
inline float __int_as_float(int bits) { return emulation::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return emulation::bit_cast<int>(value); }
inline double __longlong_as_double(long long bits) { return emulation::bit_cast<double>(bits); }
inline long long __double_as_longlong(double value) { return emulation::bit_cast<long long>(value); }

// The half types convert by these functions only, as under nvcc with torch's options.
// bfloat16 is the upper half of a float; rounding is to nearest even, NaN stays NaN.
struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(unsigned(value.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16(float value) {
  const unsigned wide = __float_as_uint(value);
  return {uint16_t(value != value ? 0x7fff : (wide + 0x7fff + (wide >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __float2bfloat16(value); }

// IEEE half: 5 exponent bits, 10 mantissa bits.
struct alignas(2) __half {
  uint16_t bits;
};
inline float __half2float(__half value) {
  const unsigned sign = unsigned(value.bits & 0x8000) << 16, exponent = value.bits >> 10 & 31;
  const unsigned mantissa = value.bits & 0x3ff;
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(mantissa) / 16777216.0f;
  return __uint_as_float(sign | (exponent == 31 ? 0xff : exponent + 112) << 23 | mantissa << 13);
}
inline __half __float2half(float value) {
  const unsigned wide = __float_as_uint(value), sign = wide >> 16 & 0x8000, magnitude = wide & 0x7fffffff;
  if (magnitude > 0x7f800000) return {0x7fff};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {  // below 2^-14: a multiple of 2^-24, and adding 0.5 makes the FPU round to that
    return {uint16_t(sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000))};
  }
  return {uint16_t(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13)};
}
inline __half __float2half_rn(float value) { return __float2half(value); }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value ? __builtin_clz(unsigned(value)) : 32; }
inline int __clzll(long long value) { return value ? __builtin_clzll((unsigned long long)value) : 64; }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __expf(float value) { return expf(value); }
inline float __logf(float value) { return logf(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float value) { return fminf(fmaxf(value, 0.0f), 1.0f); }
inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }

// As in CUDA, min and max of floats ignore one NaN; of integers they compare.
template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

template <class T>
inline T __ldg(const T* pointer) {
  return *pointer;
}
template <class T>
inline T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T>
inline void __stcs(T* pointer, T value) {
  *pointer = value;
}
