// Runs CUDA C++ kernels as ordinary C++ on the CPU, for tests: it finds mistakes of synchronisation and indexing
// without a GPU. One fiber per CUDA thread, switched only at barriers, warp operations and (in random order) atomics;
// the blocks of a grid run one after another on one OS thread.
//
// - Order: forward (of the threads that can go on, the lowest goes on), reverse (the highest) or random from a seed.
// - Shared memory has its exact size, ends at a page that cannot be touched, and is poisoned before every block.
// - A launch that goes wrong returns an error, and last_error() names block, thread, file and line: barriers or warp
//   operations that diverge, deadlock, wrong masks, races, accesses outside a buffer, undefined behaviour.
//
// It is no model of the GPU's caches, registers or speed, and knows no order between blocks but that of launches.
#pragma once

#ifdef __CUDACC__
#error "emulation.h is for a host compiler; nvcc needs only csrc/common/cuda_compat.cuh"
#endif

#include <tuple>
#include <type_traits>
#include <utility>

#include "emulation_types.h"

typedef int cudaError_t;
typedef struct CUstream_st* cudaStream_t;
enum : cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace emulation {

struct Place {  // of a call in the kernel's source
  const char* file;
  int line;
};
enum class WarpKind : uint8_t {
  kSync,
  kShuffle,
  kBallot,
  kMatchAny,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kReduceAnd,
  kReduceOr
};
struct BarrierVote {
  int any, all, count;
};
struct SharedSlot;  // the memory of one SHARED variable

cudaError_t run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* argument);
void* static_shared(SharedSlot*& slot, size_t bytes, size_t alignment, size_t granule, const char* name);
void* dynamic_shared();
int lane();
void preempt();  // in random order, another thread may step in here
BarrierVote block_barrier(bool predicate, Place place);
uint64_t warp_operation(WarpKind kind, unsigned mask, uint64_t value, int source_lane, Place place);
void note_atomic(const void* address, size_t bytes);
const char* last_error();

template <class T>
constexpr size_t granule() {  // what races are looked for in: a number of at most 4 bytes
  return std::is_arithmetic<T>::value ? sizeof(T) < 4 ? sizeof(T) : 4 : 1;
}
template <class T>
inline uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "warp operations take values of at most 64 bits");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
inline T from_bits(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
inline T shuffle(unsigned mask, T value, int source_lane, Place place) {
  return from_bits<T>(warp_operation(WarpKind::kShuffle, mask, to_bits(value), source_lane, place));
}
template <class T>
inline T reduce(WarpKind kind, unsigned mask, T value, Place place) {
  static_assert(sizeof(T) == 4 && std::is_integral<T>::value, "__reduce_*_sync takes int or unsigned");
  return T(warp_operation(kind, mask, uint64_t(int64_t(value)), 0, place));
}
}  // namespace emulation

// A variable of shared memory: one per block and source line, as `__shared__` is.
#define SHARED(type, name, ...)                                                                      \
  static emulation::SharedSlot* name##_slot;                                                         \
  using name##_shared_type = type __VA_ARGS__;                                                       \
  auto& name = *static_cast<name##_shared_type*>(                                                    \
      emulation::static_shared(name##_slot, sizeof(name##_shared_type), alignof(name##_shared_type), \
                               emulation::granule<std::remove_all_extents_t<name##_shared_type>>(), #name))
#define DYN_SHARED(type, name) type* name = static_cast<type*>(emulation::dynamic_shared())

// The default arguments are evaluated where the kernel calls, which is the place an error names.
#define EMULATION_HERE emulation::Place place = {__builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(EMULATION_HERE) { emulation::block_barrier(false, place); }
inline int __syncthreads_or(int predicate, EMULATION_HERE) { return emulation::block_barrier(predicate, place).any; }
inline int __syncthreads_and(int predicate, EMULATION_HERE) { return emulation::block_barrier(predicate, place).all; }
inline int __syncthreads_count(int predicate, EMULATION_HERE) {
  return emulation::block_barrier(predicate, place).count;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_HERE) {
  emulation::warp_operation(emulation::WarpKind::kSync, mask, 0, 0, place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATION_HERE) {
  return unsigned(emulation::warp_operation(emulation::WarpKind::kBallot, mask, predicate != 0, 0, place));
}
inline int __any_sync(unsigned mask, int predicate, EMULATION_HERE) {
  return __ballot_sync(mask, predicate, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATION_HERE) {
  return __ballot_sync(mask, predicate, place) == mask;
}

// `width` splits a warp into segments; a source outside the own segment gives the lane's own value, as in CUDA.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATION_HERE) {
  const int first = emulation::lane() & ~(width - 1);
  return emulation::shuffle(mask, value, first + (source & (width - 1)), place);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_HERE) {
  const int lane = emulation::lane(), source = lane - int(delta);
  return emulation::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, place);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATION_HERE) {
  const int lane = emulation::lane(), source = lane + int(delta);
  return emulation::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, place);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, EMULATION_HERE) {
  const int lane = emulation::lane(), source = lane ^ lane_mask;
  return emulation::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, place);
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, EMULATION_HERE) {
  return unsigned(emulation::warp_operation(emulation::WarpKind::kMatchAny, mask, emulation::to_bits(value), 0, place));
}
template <class T>
inline T __reduce_add_sync(unsigned mask, T value, EMULATION_HERE) {
  return emulation::reduce(emulation::WarpKind::kReduceAdd, mask, value, place);
}
template <class T>
inline T __reduce_min_sync(unsigned mask, T value, EMULATION_HERE) {
  return emulation::reduce(emulation::WarpKind::kReduceMin, mask, value, place);
}
template <class T>
inline T __reduce_max_sync(unsigned mask, T value, EMULATION_HERE) {
  return emulation::reduce(emulation::WarpKind::kReduceMax, mask, value, place);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, EMULATION_HERE) {
  return emulation::reduce(emulation::WarpKind::kReduceAnd, mask, value, place);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, EMULATION_HERE) {
  return emulation::reduce(emulation::WarpKind::kReduceOr, mask, value, place);
}
#undef EMULATION_HERE

// There is one OS thread, and its stores are in order.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

namespace emulation {
template <class T, class Update>
__attribute__((no_sanitize("thread"))) inline T atomic_update(T* address, Update update) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics here are of 32 or 64 bits");
  preempt();
  note_atomic(address, sizeof(T));
  const T before = *address;
  *address = T(update(before));
  return before;
}
}  // namespace emulation
template <class T>
inline T atomicAdd(T* address, emulation::identity_t<T> value) {
  return emulation::atomic_update(address, [=](T before) { return before + value; });
}
template <class T>
inline T atomicMax(T* address, emulation::identity_t<T> value) {
  return emulation::atomic_update(address, [=](T before) { return before < value ? value : before; });
}
template <class T>
inline T atomicMin(T* address, emulation::identity_t<T> value) {
  return emulation::atomic_update(address, [=](T before) { return value < before ? value : before; });
}
template <class T>
inline T atomicOr(T* address, emulation::identity_t<T> value) {
  return emulation::atomic_update(address, [=](T before) { return before | value; });
}
template <class T>
inline T atomicAnd(T* address, emulation::identity_t<T> value) {
  return emulation::atomic_update(address, [=](T before) { return before & value; });
}
template <class T>
inline T atomicExch(T* address, emulation::identity_t<T> value) {
  return emulation::atomic_update(address, [=](T) { return value; });
}
template <class T>
inline T atomicCAS(T* address, emulation::identity_t<T> expected, emulation::identity_t<T> value) {
  return emulation::atomic_update(address, [=](T before) { return before == expected ? value : before; });
}

inline float approximate_reciprocal(float value) { return 1.0f / value; }

inline cudaError_t cudaMemsetAsync(void* pointer, int byte, size_t bytes, cudaStream_t) {
  if (bytes) memset(pointer, byte, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return *emulation::last_error() ? cudaErrorLaunchFailure : cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return emulation::last_error(); }

template <class... Parameters, class... Arguments>
inline cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                          Arguments&&... arguments) {
  std::tuple<std::decay_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
  auto body = [&] { std::apply(kernel, values); };
  return emulation::run_grid(
      grid, block, shared_bytes, [](void* self) { (*static_cast<decltype(body)*>(self))(); }, &body);
}
