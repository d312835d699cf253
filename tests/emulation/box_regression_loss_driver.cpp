// The GPU's box_regression_loss in the emulation: the launch function of box_regression_loss_cuda.cu, for both dtypes.
#include "box_regression_loss/box_regression_loss_kernel.cuh"

#define DEFINE(name, T)                                                                                               \
  extern "C" int run_box_regression_loss_##name(const T* pred, const T* target, const T* weight, const T* references, \
                                                int64_t reference_count, const T* stds, T* loss, T* gradient,         \
                                                T* target_gradient, double* partial, int64_t ticket, int64_t n,       \
                                                int64_t kind, int64_t reduction) {                                    \
    const auto chosen = static_cast<libra::Reduction>(reduction);                                                     \
    const bool each = chosen == libra::Reduction::kNone;                                                              \
    return libra::launch_box_regression_loss<T>(static_cast<libra::Kind>(kind),                                       \
                                                {pred, target, weight, references, reference_count, stds,             \
                                                 each ? loss : nullptr, gradient, target_gradient, n},                \
                                                each ? nullptr : loss, partial, static_cast<int>(ticket), chosen,     \
                                                nullptr);                                                             \
  }

DEFINE(float32, float)
DEFINE(float64, double)

extern "C" int64_t box_loss_blocks(int64_t n) { return libra::box_loss_blocks(n); }
