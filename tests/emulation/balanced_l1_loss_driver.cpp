// The GPU's balanced_l1_loss in the emulation: the launch function of balanced_l1_loss_cuda.cu, for float and double.
#include "balanced_l1_loss/balanced_l1_loss_kernel.cuh"

namespace {

template <class T>
int run(const T* pred, const T* target, const T* weight, int64_t per_box, T* loss, T* gradient, double* partial,
        int64_t ticket, int64_t n, double alpha, double gamma, double beta, int64_t published, int64_t reduction) {
  const auto constants = libra::BalancedL1<T>::make(alpha, gamma, beta, published != 0);
  const auto kind = static_cast<libra::Reduction>(reduction);
  const bool each = kind == libra::Reduction::kNone;
  return libra::launch_balanced_l1_loss<T>({pred, target, weight, per_box != 0, each ? loss : nullptr, gradient},
                                           each ? nullptr : loss, partial, static_cast<int>(ticket), n, constants, kind,
                                           nullptr);
}

}  // namespace

extern "C" int64_t balanced_l1_blocks(int64_t n, int64_t bytes_per_element) {
  return libra::balanced_l1_blocks(n, static_cast<size_t>(bytes_per_element));
}

extern "C" int run_balanced_l1_loss_float(const float* pred, const float* target, const float* weight, int64_t per_box,
                                          float* loss, float* gradient, double* partial, int64_t ticket, int64_t n,
                                          double alpha, double gamma, double beta, int64_t published,
                                          int64_t reduction) {
  return run(pred, target, weight, per_box, loss, gradient, partial, ticket, n, alpha, gamma, beta, published,
             reduction);
}

extern "C" int run_balanced_l1_loss_double(const double* pred, const double* target, const double* weight,
                                           int64_t per_box, double* loss, double* gradient, double* partial,
                                           int64_t ticket, int64_t n, double alpha, double gamma, double beta,
                                           int64_t published, int64_t reduction) {
  return run(pred, target, weight, per_box, loss, gradient, partial, ticket, n, alpha, gamma, beta, published,
             reduction);
}
