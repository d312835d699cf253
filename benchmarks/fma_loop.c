// The most float32 fused multiply-adds that this processor does: a loop over registers, compiled with -march=native.
// Sixteen vectors are enough independent work to hide the latency of the units of any x86 or Arm processor.
#ifdef __AVX512F__
typedef float Vector __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef float Vector __attribute__((vector_size(32)));
#else
typedef float Vector __attribute__((vector_size(16)));
#endif
enum { kVectors = sizeof(Vector) == 32 ? 12 : 16 };  // AVX2 has 16 registers, and two hold the constants

// Returns the multiply-adds done, each of one number; `sink` keeps the compiler from leaving the loop out.
long long fma_loop(long long rounds, float* sink) {
  Vector x[kVectors];
  Vector factor, summand;
  for (unsigned i = 0; i < sizeof(Vector) / 4; ++i) factor[i] = 0.999f, summand[i] = 0.001f * (sink[0] + i);
  for (int v = 0; v < kVectors; ++v) x[v] = summand * (float)v;
  for (long long round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) x[v] = x[v] * factor + summand;
  }
  Vector sum = x[0];
  for (int v = 1; v < kVectors; ++v) sum += x[v];
  for (unsigned i = 0; i < sizeof(Vector) / 4; ++i) sink[0] += sum[i];
  return rounds * kVectors * (long long)(sizeof(Vector) / 4);
}
