// balanced_l1_loss on the CPU: one pass reads pred, target and weight and writes loss and gradient.
//
// A sum is taken per chunk of fixed length and the chunks' sums are added in their order, so the result does not depend
// on the number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "balanced_l1_loss/balanced_l1_loss_check.h"
#include "balanced_l1_loss/balanced_l1_loss_math.h"
#include "common/vector_clones.h"

namespace libra {
namespace {

constexpr int64_t kChunk = 4096;  // elements: 64 KiB of float32 inputs and outputs, which stays in L2
constexpr int kBlock = 256;       // elements at a time, in arrays that stay in L1

// The elements [0, n) of one chunk; loss and gradient may be null. Returns the sum of the losses.
template <bool kPublished, class T>
inline __attribute__((always_inline)) double chunk_body(const T* pred, const T* target, const T* weight, T* loss,
                                                        T* gradient, int64_t n, const BalancedL1<T>& constants_in,
                                                        T gradient_scale) {
  const BalancedL1<T> constants = constants_in;  // a copy that stores to `loss` cannot change
  constexpr int kLanes = 16;  // independent partial sums: the order of addition is fixed, and still vector code
  T partial[kLanes] = {};
  T error[kBlock], factor[kBlock], values[kBlock], slopes[kBlock];
  for (int64_t start = 0; start < n; start += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, n - start));
    for (int i = 0; i < kBlock; ++i) factor[i] = i < count ? T(1) : T(0);
    if (weight) std::copy(weight + start, weight + start + count, factor);
    for (int i = 0; i < count; ++i) {
      const T difference = pred[start + i] - target[start + i];
      error[i] = factor[i] == T(0) ? T(0) : difference;
    }
    std::fill(error + count, error + kBlock, T(0));
    for (int i = 0; i < kBlock; ++i) {
      balanced_l1<kPublished>(error[i], constants, values[i], slopes[i]);
      values[i] *= factor[i];
      slopes[i] *= factor[i] * gradient_scale;
    }
    for (int i = 0; i < kBlock; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) partial[lane] += values[i + lane];
    if (loss) std::copy(values, values + count, loss + start);
    if (gradient) std::copy(slopes, slopes + count, gradient + start);
  }
  double sum = 0;
  for (const T value : partial) sum += static_cast<double>(value);
  return sum;
}

template <bool kPublished>
LIBRA_VECTOR_CLONES double run_chunk(const float* pred, const float* target, const float* weight, float* loss,
                                     float* gradient, int64_t n, const BalancedL1<float>& constants,
                                     float gradient_scale) {
  return chunk_body<kPublished>(pred, target, weight, loss, gradient, n, constants, gradient_scale);
}

template <bool kPublished>
double run_chunk(const double* pred, const double* target, const double* weight, double* loss, double* gradient,
                 int64_t n, const BalancedL1<double>& constants, double gradient_scale) {
  return chunk_body<kPublished>(pred, target, weight, loss, gradient, n, constants, gradient_scale);
}

template <class T>
void run(const Tensor& pred, const Tensor& target, const Tensor* weight, Tensor& loss, Tensor& gradient,
         const BalancedL1<T>& constants, Reduction reduction) {
  const int64_t n = pred.numel(), chunks = (n + kChunk - 1) / kChunk;
  const bool each = reduction == Reduction::kNone;
  const T scale = reduction == Reduction::kMean ? T(1) / static_cast<T>(n) : T(1);
  const T* weights = weight ? read<T>(*weight) : nullptr;
  T* losses = each ? write<T>(loss) : nullptr;
  T* gradients = gradient.numel() ? write<T>(gradient) : nullptr;
  std::vector<double> sums(each ? 0 : chunks);
  torch::stable::parallel_for(0, chunks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t at = chunk * kChunk;
      const auto run_with = [&](auto published) {
        return run_chunk<decltype(published)::value>(
            read<T>(pred) + at, read<T>(target) + at, weights ? weights + at : nullptr, losses ? losses + at : nullptr,
            gradients ? gradients + at : nullptr, std::min(kChunk, n - at), constants, scale);
      };
      const double sum = constants.published ? run_with(std::true_type{}) : run_with(std::false_type{});
      if (!each) sums[chunk] = sum;
    }
  });
  if (each) return;
  double total = 0;
  for (const double sum : sums) total += sum;
  if (reduction == Reduction::kMean) total /= static_cast<double>(n);  // no elements: NaN, as torch's mean
  *write<T>(loss) = static_cast<T>(total);
}

std::tuple<Tensor, Tensor> balanced_l1_loss_cpu(Tensor pred, Tensor target, std::optional<Tensor> weight, double alpha,
                                                double gamma, double beta, bool published, int64_t reduction,
                                                bool with_gradient) {
  const auto arguments = BalancedL1Arguments::check(pred, target, weight, alpha, gamma, beta, reduction);
  auto [loss, gradient] = arguments.outputs(with_gradient);
  const Tensor* weights = arguments.weight ? &*arguments.weight : nullptr;
  if (pred.scalar_type() == ScalarType::Float) {
    run(arguments.pred, arguments.target, weights, loss, gradient,
        BalancedL1<float>::make(alpha, gamma, beta, published), arguments.reduction);
  } else {
    run(arguments.pred, arguments.target, weights, loss, gradient,
        BalancedL1<double>::make(alpha, gamma, beta, published), arguments.reduction);
  }
  return {loss, gradient};
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) { m.impl("balanced_l1_loss", TORCH_BOX(&libra::balanced_l1_loss_cpu)); }
