// Words of float32 arithmetic that a CPU and a GPU say differently.
#pragma once

#include "common/cuda_compat.cuh"

// Inlined by force: the CPU's vector clones need the whole formula inside them.
#define LIBRA_FORMULA LIBRA_HOST_DEVICE __attribute__((always_inline))

namespace libra {

// a b + c: on the GPU, where that is one instruction, rounded once. On the CPU it is not, so that every instruction set
// gives the same bits.
LIBRA_FORMULA float multiply_add(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return a * b + c;
#endif
}

// How a formula that leaves the choice to its caller takes a b + c: fast, or with the same bits on the CPU and the GPU.
struct FusedOnGpu {
  LIBRA_FORMULA static float multiply_add(float a, float b, float c) { return libra::multiply_add(a, b, c); }
};
struct SameBits {
  LIBRA_FORMULA static float multiply_add(float a, float b, float c) { return a * b + c; }
};

}  // namespace libra
