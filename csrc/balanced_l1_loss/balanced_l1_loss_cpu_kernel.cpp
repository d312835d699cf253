// balanced_l1_loss on the CPU: one pass reads pred, target and weight and writes loss and gradient.
//
// A block of fixed length goes through the formula in vector code, without branches. A sum is taken per chunk of
// blocks, in a fixed number of lanes, and the chunks' sums are added in their order: the result does not depend on the
// number of threads.
#include "balanced_l1_loss/balanced_l1_loss_cpu_kernel.h"

#include <algorithm>
#include <type_traits>

#include "common/vector_clones.h"

namespace libra {
namespace {

constexpr int64_t kChunk = 4096;    // elements: 48 KiB of float32 inputs and output, which stays in L2
constexpr int64_t kThreadWork = 4;  // chunks that are worth waking a thread for
constexpr int kBlock = 256;         // elements at a time, whose losses stay in L1
constexpr int kLanes = 16;          // independent partial sums: the order of addition is fixed, and still vector code

// Losses and gradients of a block; these two overlap nothing. Three short loops, and not one: so the processor has more
// of a loop's turns under way at a time.
template <bool kPublished, bool kWeighted, class T>
inline __attribute__((always_inline)) void block_body(const T* pred, const T* target, const T* weight,
                                                      T* __restrict__ loss, T* __restrict__ gradient,
                                                      const BalancedL1<T>& constants, T gradient_scale) {
  T error[kBlock];
  T value[kBlock], excess[kBlock];  // of the logarithm; of float32 its two parts at first
  for (int i = 0; i < kBlock; ++i) {
    const T difference = pred[i] - target[i];
    error[i] = kWeighted && weight[i] == T(0) ? T(0) : difference;
    const T scaled = scaled_error(error[i], constants);
    if constexpr (std::is_same_v<T, float>) {
      const Split split = split_one_plus(scaled);
      value[i] = split.f, excess[i] = split.exponent;
    } else {
      const Logarithm<T> logarithm = logarithm_of_one_plus(scaled);
      value[i] = logarithm.value, excess[i] = logarithm.excess;
    }
  }
  for (int i = 0; std::is_same_v<T, float> && i < kBlock; ++i) {
    const Logarithm<float> logarithm = logarithm_of({static_cast<float>(value[i]), static_cast<float>(excess[i])});
    value[i] = logarithm.value, excess[i] = logarithm.excess;
  }
  for (int i = 0; i < kBlock; ++i) {
    T each, slope;
    balanced_l1<kPublished>(error[i], {value[i], excess[i]}, constants, each, slope);
    loss[i] = kWeighted ? each * weight[i] : each;
    gradient[i] = slope * (kWeighted ? weight[i] * gradient_scale : gradient_scale);
  }
}

// The elements [0, n) of one chunk; loss and gradient may be null. Returns the sum of the losses.
template <bool kPublished, bool kWeighted, class T>
inline __attribute__((always_inline)) double chunk_body(const T* pred, const T* target, const T* weight, T* loss,
                                                        T* gradient, int64_t n, const BalancedL1<T>& constants_in,
                                                        T gradient_scale) {
  const BalancedL1<T> constants = constants_in;  // a copy that stores to `loss` cannot change
  T partial[kLanes] = {}, own_losses[kBlock], own_gradients[kBlock], padded[3][kBlock];
  for (int64_t start = 0; start < n; start += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, n - start));
    const bool whole = count == kBlock;
    const T* inputs[3] = {pred + start, target + start, kWeighted ? weight + start : nullptr};
    for (int input = 0; !whole && input < 2 + kWeighted; ++input) {  // completed by elements without an error
      std::fill(std::copy(inputs[input], inputs[input] + count, padded[input]), padded[input] + kBlock, T(0));
      inputs[input] = padded[input];
    }
    T* losses = loss && whole ? loss + start : own_losses;
    T* gradients = gradient && whole ? gradient + start : own_gradients;
    block_body<kPublished, kWeighted>(inputs[0], inputs[1], inputs[2], losses, gradients, constants, gradient_scale);
    for (int i = 0; i < kBlock; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) partial[lane] += losses[i + lane];
    if (loss && !whole) std::copy(losses, losses + count, loss + start);
    if (gradient && !whole) std::copy(gradients, gradients + count, gradient + start);
  }
  double sum = 0;
  for (const T value : partial) sum += static_cast<double>(value);
  return sum;
}

template <bool kPublished, bool kWeighted>
LIBRA_VECTOR_CLONES double run_chunk(const float* pred, const float* target, const float* weight, float* loss,
                                     float* gradient, int64_t n, const BalancedL1<float>& constants,
                                     float gradient_scale) {
  return chunk_body<kPublished, kWeighted>(pred, target, weight, loss, gradient, n, constants, gradient_scale);
}

template <bool kPublished, bool kWeighted>
double run_chunk(const double* pred, const double* target, const double* weight, double* loss, double* gradient,
                 int64_t n, const BalancedL1<double>& constants, double gradient_scale) {
  return chunk_body<kPublished, kWeighted>(pred, target, weight, loss, gradient, n, constants, gradient_scale);
}

// The chunk's code for a formula, with or without weights.
template <class T>
auto choose_chunk(bool published, bool weighted) {
  using Chunk = double (*)(const T*, const T*, const T*, T*, T*, int64_t, const BalancedL1<T>&, T);
  if (published)
    return weighted ? static_cast<Chunk>(run_chunk<true, true>) : static_cast<Chunk>(run_chunk<true, false>);
  return weighted ? static_cast<Chunk>(run_chunk<false, true>) : static_cast<Chunk>(run_chunk<false, false>);
}

}  // namespace

template <class T>
void balanced_l1_loss(const T* pred, const T* target, const T* weight, T* loss, T* gradient, int64_t n,
                      const BalancedL1<T>& constants, Reduction reduction, ParallelFor threads) {
  const bool each = reduction == Reduction::kNone;
  const T scale = reduction == Reduction::kMean ? T(1) / static_cast<T>(n) : T(1);
  const auto run_chunk = choose_chunk<T>(constants.published, weight != nullptr);
  double total = sum_chunks(threads, n, kChunk, kThreadWork, [&](int64_t at, int64_t end) {
    return run_chunk(pred + at, target + at, weight ? weight + at : nullptr, each ? loss + at : nullptr,
                     gradient ? gradient + at : nullptr, end - at, constants, scale);
  });
  if (each) return;
  if (reduction == Reduction::kMean) total /= static_cast<double>(n);  // no elements: NaN, as torch's mean
  *loss = static_cast<T>(total);
}

template void balanced_l1_loss<float>(const float*, const float*, const float*, float*, float*, int64_t,
                                      const BalancedL1<float>&, Reduction, ParallelFor);
template void balanced_l1_loss<double>(const double*, const double*, const double*, double*, double*, int64_t,
                                       const BalancedL1<double>&, Reduction, ParallelFor);

}  // namespace libra
