// balanced_l1_loss on the CPU: one pass reads pred, target and weight and writes loss and gradient.
//
// A sum is taken per chunk of fixed length and the chunks' sums are added in their order, so the result does not depend
// on the number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "balanced_l1_loss/balanced_l1_loss_check.h"
#include "balanced_l1_loss/balanced_l1_loss_math.h"
#include "common/vector_clones.h"

namespace libra {
namespace {

constexpr int64_t kChunk = 4096;  // elements: 64 KiB of float32 inputs and outputs, which stays in L2

// The elements [0, n) of one chunk; loss and gradient may be null. Returns the sum of the losses.
template <class T>
inline __attribute__((always_inline)) double chunk_body(const T* pred, const T* target, const T* weight, T* loss,
                                                        T* gradient, int64_t n, const BalancedL1<T>& constants,
                                                        T gradient_scale) {
  constexpr int kLanes = 16;  // independent partial sums: the order of addition is fixed, and still vector code
  T partial[kLanes] = {};
  T values[kLanes], slopes[kLanes];
  for (int64_t start = 0; start < n; start += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, n - start));
    T error[kLanes] = {}, factor[kLanes];
    if (weight) {
      for (int i = 0; i < count; ++i) factor[i] = weight[start + i];
      for (int i = count; i < kLanes; ++i) factor[i] = T(0);
      for (int i = 0; i < count; ++i) error[i] = factor[i] == T(0) ? T(0) : pred[start + i] - target[start + i];
    } else {
      for (int i = 0; i < kLanes; ++i) factor[i] = i < count ? T(1) : T(0);
      for (int i = 0; i < count; ++i) error[i] = pred[start + i] - target[start + i];
    }
    for (int i = 0; i < kLanes; ++i) {
      balanced_l1(error[i], constants, values[i], slopes[i]);
      values[i] *= factor[i];
      slopes[i] *= factor[i] * gradient_scale;
      partial[i] += values[i];
    }
    if (loss) std::copy(values, values + count, loss + start);
    if (gradient) std::copy(slopes, slopes + count, gradient + start);
  }
  double sum = 0;
  for (const T value : partial) sum += static_cast<double>(value);
  return sum;
}

LIBRA_VECTOR_CLONES
double run_chunk(const float* pred, const float* target, const float* weight, float* loss, float* gradient, int64_t n,
                 const BalancedL1<float>& constants, float gradient_scale) {
  return chunk_body(pred, target, weight, loss, gradient, n, constants, gradient_scale);
}

double run_chunk(const double* pred, const double* target, const double* weight, double* loss, double* gradient,
                 int64_t n, const BalancedL1<double>& constants, double gradient_scale) {
  return chunk_body(pred, target, weight, loss, gradient, n, constants, gradient_scale);
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
      const double sum = run_chunk(read<T>(pred) + at, read<T>(target) + at, weights ? weights + at : nullptr,
                                   losses ? losses + at : nullptr, gradients ? gradients + at : nullptr,
                                   std::min(kChunk, n - at), constants, scale);
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
