// Philox (common/philox.h) for a list of candidates: words 0 and 1, or words 2 and 3, of each.
//
// Compilers turn the products of 32 x 32 -> 64 bits into products of 64 x 64 bits and shuffles; with the processor's
// own instruction a word takes half the time. So here, and only here, are intrinsics. A lane of 64 bits belongs to one
// candidate: the upper half of a product is shifted down, and the lower half stays where the next product reads it,
// whatever lies above.
#pragma once

#include <cstdint>

#include "common/philox.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define LIBRA_X86_WORDS
#include <immintrin.h>
#endif

namespace libra {
namespace {

struct WordsOf {
  uint32_t image;
  uint64_t seed;
  bool upper;  // words 2 and 3 instead of 0 and 1
};

inline void philox_words(const uint32_t* candidates, int count, WordsOf of, uint32_t* first, uint32_t* second) {
  for (int i = 0; i < count; ++i) {
    const PhiloxWords words = philox(candidates[i], of.image, of.seed);
    first[i] = words.word[of.upper ? 2 : 0], second[i] = words.word[of.upper ? 3 : 1];
  }
}

#ifdef LIBRA_X86_WORDS
// With "maskz" and a full mask, for which GCC makes the same code as without, and does not warn.
__attribute__((target("avx512f"))) inline void philox_words_avx512(const uint32_t* candidates, int count, WordsOf of,
                                                                   uint32_t* first, uint32_t* second) {
  constexpr __mmask8 kAll = 0xff;
  const __m512i factor0 = _mm512_set1_epi64(0xD2511F53u), factor1 = _mm512_set1_epi64(0xCD9E8D57u);
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(candidates + i));
    __m512i c0 = _mm512_maskz_cvtepu32_epi64(kAll, index), c1 = _mm512_set1_epi64(of.image);
    __m512i c2 = _mm512_setzero_si512(), c3 = c2;
    uint32_t k0 = static_cast<uint32_t>(of.seed), k1 = static_cast<uint32_t>(of.seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const __m512i product0 = _mm512_maskz_mul_epu32(kAll, c0, factor0);
      const __m512i product1 = _mm512_maskz_mul_epu32(kAll, c2, factor1);
      const __m512i high0 = _mm512_maskz_srli_epi64(kAll, product0, 32);
      const __m512i high1 = _mm512_maskz_srli_epi64(kAll, product1, 32);
      c0 = _mm512_xor_epi64(_mm512_xor_epi64(high1, c1), _mm512_set1_epi64(k0)), c1 = product1;
      c2 = _mm512_xor_epi64(_mm512_xor_epi64(high0, c3), _mm512_set1_epi64(k1)), c3 = product0;
    }
    const __m256i low_first = _mm512_maskz_cvtepi64_epi32(kAll, of.upper ? c2 : c0);
    const __m256i low_second = _mm512_maskz_cvtepi64_epi32(kAll, of.upper ? c3 : c1);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(first + i), low_first);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(second + i), low_second);
  }
  philox_words(candidates + i, count - i, of, first + i, second + i);
}

__attribute__((target("avx2"))) inline void philox_words_avx2(const uint32_t* candidates, int count, WordsOf of,
                                                              uint32_t* first, uint32_t* second) {
  const __m256i factor0 = _mm256_set1_epi64x(0xD2511F53u), factor1 = _mm256_set1_epi64x(0xCD9E8D57u);
  const __m256i even = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);  // the low halves of the lanes
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    const __m128i index = _mm_loadu_si128(reinterpret_cast<const __m128i*>(candidates + i));
    __m256i c0 = _mm256_cvtepu32_epi64(index), c1 = _mm256_set1_epi64x(of.image);
    __m256i c2 = _mm256_setzero_si256(), c3 = c2;
    uint32_t k0 = static_cast<uint32_t>(of.seed), k1 = static_cast<uint32_t>(of.seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const __m256i product0 = _mm256_mul_epu32(c0, factor0), product1 = _mm256_mul_epu32(c2, factor1);
      const __m256i high0 = _mm256_srli_epi64(product0, 32), high1 = _mm256_srli_epi64(product1, 32);
      c0 = _mm256_xor_si256(_mm256_xor_si256(high1, c1), _mm256_set1_epi64x(k0)), c1 = product1;
      c2 = _mm256_xor_si256(_mm256_xor_si256(high0, c3), _mm256_set1_epi64x(k1)), c3 = product0;
    }
    const __m256i low_first = _mm256_permutevar8x32_epi32(of.upper ? c2 : c0, even);
    const __m256i low_second = _mm256_permutevar8x32_epi32(of.upper ? c3 : c1, even);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(first + i), _mm256_castsi256_si128(low_first));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(second + i), _mm256_castsi256_si128(low_second));
  }
  philox_words(candidates + i, count - i, of, first + i, second + i);
}
#endif

// By the best version for this processor.
inline void random_words(const uint32_t* candidates, int count, WordsOf of, uint32_t* first, uint32_t* second) {
#ifdef LIBRA_X86_WORDS
  static const auto words = __builtin_cpu_supports("avx512f") ? philox_words_avx512
                            : __builtin_cpu_supports("avx2")  ? philox_words_avx2
                                                              : philox_words;
  words(candidates, count, of, first, second);
#else
  philox_words(candidates, count, of, first, second);
#endif
}

}  // namespace
}  // namespace libra
