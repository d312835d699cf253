// sigmoid_focal_loss on the CPU: one pass reads the logits and writes loss and gradient.
//
// A block of elements, of whatever rows, is first taken as if every answer were no; then each of its rows puts its own
// class, or its mask, into place. So the arithmetic is vector code without branches for any number of classes. A sum is
// taken per chunk of blocks, in a fixed number of lanes, and the chunks' sums are added in their order.
#include "sigmoid_focal_loss/sigmoid_focal_loss_cpu_kernel.h"

#include <algorithm>
#include <type_traits>

#include "common/vector_clones.h"

namespace libra {
namespace {

constexpr int64_t kChunk = 4096;    // elements
constexpr int64_t kThreadWork = 4;  // chunks that are worth waking a thread for
constexpr int kBlock = 256;         // elements at a time, which stay in L1
constexpr int kLanes = 16;          // independent partial sums: the order of addition is fixed, and still vector code

// A block's elements. The sign of a weight is that of the slope: negative for a slot's own class.
template <class T>
struct Block {
  T z[kBlock], weight[kBlock], e[kBlock], loss[kBlock], gradient[kBlock];
};

// Elements [first, first + count) of all, those beyond as masked.
template <class S, class T>
inline __attribute__((always_inline)) void load(const FocalTensors<S>& tensors, int64_t first, int count,
                                                const Focal<T>& constants, Block<T>& block) {
  const S* logits = tensors.logits + first;
  if (count == kBlock) {
    for (int i = 0; i < kBlock; ++i) block.z[i] = to_number(logits[i]);
  } else {
    for (int i = 0; i < count; ++i) block.z[i] = to_number(logits[i]);
    std::fill(block.z + count, block.z + kBlock, T(0));
  }
  for (int i = 0; i < kBlock; ++i) block.weight[i] = constants.other;
  std::fill(block.weight + count, block.weight + kBlock, T(0));
  const int64_t classes = tensors.classes;
  int64_t row = first / classes;
  for (int64_t begin = row * classes - first; begin < count; begin += classes, ++row) {
    if (tensors.mask && !tensors.mask[row]) {
      const int64_t from = std::max<int64_t>(begin, 0), to = std::min<int64_t>(begin + classes, count);
      std::fill(block.z + from, block.z + to, T(0));
      std::fill(block.weight + from, block.weight + to, T(0));
      continue;
    }
    const int64_t label = tensors.labels[row];
    if (label < 0 || label >= classes) continue;
    const int64_t own = begin + label;
    if (own < 0 || own >= count) continue;
    block.z[own] = -block.z[own];
    block.weight[own] = -constants.own;
  }
}

// The elements [begin, end) of one chunk. Returns the sum of their losses.
template <bool kSquare, class S>
inline __attribute__((always_inline)) double chunk_body(const FocalTensors<S>& tensors, int64_t begin, int64_t end,
                                                        const Focal<Arithmetic<S>>& constants_in, bool each,
                                                        Arithmetic<S> gradient_scale) {
  using T = Arithmetic<S>;
  const Focal<T> constants = constants_in;  // a copy that stores to the loss cannot change
  Block<T> block;
  T partial[kLanes] = {};
  for (int64_t start = begin; start < end; start += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, end - start));
    load(tensors, start, count, constants, block);
    for (int i = 0; i < kBlock; ++i) block.e[i] = exponential<FusedOnGpu>(-near_size(block.z[i]));
    for (int i = 0; i < kBlock; ++i) {
      const T weight = block.weight[i];
      T loss, slope;
      focal<kSquare>(block.z[i], block.e[i], weight, constants.gamma, loss, slope);
      block.loss[i] = weight < T(0) ? -loss : loss;
      block.gradient[i] = slope * gradient_scale;
    }
    for (int i = 0; i < kBlock; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) partial[lane] += block.loss[i + lane];
    if (each) std::copy(block.loss, block.loss + count, tensors.loss + start);
    if (!tensors.gradient) continue;
    S* gradient = tensors.gradient + start;
    if (count == kBlock) {
      for (int i = 0; i < kBlock; ++i) from_number(block.gradient[i], gradient[i]);
    } else {
      for (int i = 0; i < count; ++i) from_number(block.gradient[i], gradient[i]);
    }
  }
  double sum = 0;
  for (const T value : partial) sum += static_cast<double>(value);
  return sum;
}

template <bool kSquare, class S>
LIBRA_VECTOR_CLONES double run_chunk(const FocalTensors<S>& tensors, int64_t begin, int64_t end,
                                     const Focal<Arithmetic<S>>& constants, bool each, Arithmetic<S> gradient_scale) {
  return chunk_body<kSquare>(tensors, begin, end, constants, each, gradient_scale);
}

}  // namespace

template <class S>
void sigmoid_focal_loss(const FocalTensors<S>& tensors, const Focal<Arithmetic<S>>& constants, Reduction reduction,
                        ParallelFor threads) {
  const int64_t n = tensors.rows * tensors.classes;
  const bool each = reduction == Reduction::kNone, mean = reduction == Reduction::kMean;
  const double scale = std::is_same_v<S, Half> ? kHalfGradientScale : (mean ? 1.0 / static_cast<double>(n) : 1.0);
  double total = sum_chunks(threads, n, kChunk, kThreadWork, [&](int64_t begin, int64_t end) {
    const auto gradient_scale = static_cast<Arithmetic<S>>(scale);
    return constants.square ? run_chunk<true, S>(tensors, begin, end, constants, each, gradient_scale)
                            : run_chunk<false, S>(tensors, begin, end, constants, each, gradient_scale);
  });
  if (each) return;
  if (mean) total /= static_cast<double>(n);  // no elements: NaN, as torch's mean
  *tensors.loss = static_cast<Arithmetic<S>>(total);
}

template void sigmoid_focal_loss<float>(const FocalTensors<float>&, const Focal<float>&, Reduction, ParallelFor);
template void sigmoid_focal_loss<double>(const FocalTensors<double>&, const Focal<double>&, Reduction, ParallelFor);
template void sigmoid_focal_loss<Half>(const FocalTensors<Half>&, const Focal<float>&, Reduction, ParallelFor);
template void sigmoid_focal_loss<BFloat16>(const FocalTensors<BFloat16>&, const Focal<float>&, Reduction, ParallelFor);

}  // namespace libra
