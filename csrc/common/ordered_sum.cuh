// One number from many blocks in one launch: the sum of what they found, in an order that only their number decides.
//
// Every block leaves a partial sum in double and counts itself in; the one that ends last adds the partial sums.
#pragma once

#include "common/block_reduce.cuh"

namespace libra {

constexpr int kSumTickets = 1 << 14;  // 64 KiB

// How many blocks of a launch have ended: zero before it and after it, so that a graph can be replayed. Launches that
// may run at the same time use different tickets (launch_ticket.h). Every source that includes this has its own.
static __device__ unsigned sum_tickets[kSumTickets];

// For a launch that adds up.
struct OrderedSum {
  double* partial;  // [blocks + 1]; null with one block
  int ticket;       // in sum_tickets; -1: the word behind the partial sums, which clear_own_ticket() sets to zero
  double divisor;
};

// Every thread of every block of kThreads calls it, the grid being one-dimensional. The block that ends last adds the
// partial sums; its thread 0 writes the total. The partial sums pass from block to block as atomics, which all of them
// see alike.
template <int kThreads, class T>
__device__ __forceinline__ void add_up(double sum, const OrderedSum& sums, T* total) {
  constexpr int kInFlight = 8;  // partial sums that a thread asks for at a time
  SHARED(bool, is_last);
  auto* partial = reinterpret_cast<unsigned long long*>(sums.partial);
  unsigned* ticket =
      sums.ticket < 0 ? reinterpret_cast<unsigned*>(sums.partial + gridDim.x) : sum_tickets + sums.ticket;
  sum = block_sum<kThreads>(sum);
  if (gridDim.x > 1) {
    if (threadIdx.x == 0) {
      atomicExch(partial + blockIdx.x, static_cast<unsigned long long>(__double_as_longlong(sum)));
      __threadfence();
      is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    sum = 0;
    for (unsigned start = threadIdx.x; start < gridDim.x; start += kInFlight * kThreads) {
      double parts[kInFlight];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        const unsigned i = start + k * kThreads;
        parts[k] = i < gridDim.x ? __longlong_as_double(static_cast<long long>(atomicAdd(partial + i, 0ull))) : 0.0;
      }
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) sum += parts[k];
    }
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) atomicExch(ticket, 0u);
  }
  if (threadIdx.x == 0) *total = static_cast<T>(sum / sums.divisor);
}

// Before a launch of `blocks` blocks that adds up.
inline cudaError_t clear_own_ticket(const OrderedSum& sums, int blocks, cudaStream_t stream) {
  if (blocks == 1 || sums.ticket >= 0) return cudaSuccess;
  return cudaMemsetAsync(sums.partial + blocks, 0, sizeof(double), stream);
}

}  // namespace libra
