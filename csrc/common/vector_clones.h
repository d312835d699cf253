// LIBRA_VECTOR_CLONES before a function compiles it for AVX-512, AVX2 and the baseline, and picks at run time what the
// processor has: one binary for all. Without contraction (-ffp-contract=off) the versions give the same results.
#pragma once

#if !defined(__x86_64__) || !defined(__gnu_linux__) || !defined(__GNUC__) || defined(__clang__) || \
    defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LIBRA_VECTOR_CLONES
#elif __GNUC__ >= 12
#define LIBRA_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else  // which cannot name the levels of x86-64
#define LIBRA_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
