// The few words by which one kernel source compiles with nvcc for the GPU and with a host compiler for the emulation in
// tests/emulation. Under nvcc they are plain CUDA; with LIBRA_EMULATION they come from tests/emulation/emulation.h; in
// any other host build (the CPU ops, which include a *_math.h) only LIBRA_HOST_DEVICE is there.
//
//   LIBRA_HOST_DEVICE float area(...)        a function for both sides
//   SHARED(float, tile, [32][33]);           static shared memory; SHARED(int, count) for a single value
//   DYN_SHARED(float, scratch);              float* scratch: the dynamic shared memory, 16-byte aligned, one per kernel
//   approximate_reciprocal(x)                1 / x to 2^-22, where neither is subnormal
//   launch(kernel<T>, grid, block, shared_bytes, stream, args...)   -> cudaError_t; returns before the kernel ends
//
// No torch header belongs here. A grid or block with a zero is an error in both worlds: return early for empty inputs.
#pragma once

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>

#define LIBRA_HOST_DEVICE __host__ __device__ inline
#define SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#define DYN_SHARED(type, name)                                          \
  extern __shared__ __align__(16) unsigned char libra_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(libra_dynamic_shared)

__device__ __forceinline__ float approximate_reciprocal(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// Arguments are converted to the kernel's own parameter types, as an ordinary call would.
template <class... Parameters, class... Arguments>
inline cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                          cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

#elif defined(LIBRA_EMULATION)

#include "emulation.h"

#define LIBRA_HOST_DEVICE inline

#else

#define LIBRA_HOST_DEVICE inline

#endif
