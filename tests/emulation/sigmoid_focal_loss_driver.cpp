// The GPU's sigmoid_focal_loss in the emulation: the launch function of sigmoid_focal_loss_cuda.cu, for each dtype.
#include "sigmoid_focal_loss/sigmoid_focal_loss_kernel.cuh"

#define DEFINE(name, S, T)                                                                                           \
  extern "C" int run_sigmoid_focal_loss_##name(const S* logits, const int64_t* labels, const uint8_t* mask, T* loss, \
                                               S* gradient, double* partial, int64_t ticket, int64_t n,              \
                                               int64_t classes, double alpha, double gamma, int64_t reduction) {     \
    const auto kind = static_cast<libra::Reduction>(reduction);                                                      \
    const bool each = kind == libra::Reduction::kNone;                                                               \
    return libra::launch_sigmoid_focal_loss<S, T>(                                                                   \
        {logits, labels, mask, each ? loss : nullptr, gradient, n, classes}, each ? nullptr : loss, partial,         \
        static_cast<int>(ticket), libra::Focal<T>::make(alpha, gamma), kind, std::is_same_v<S, __half>, nullptr);    \
  }

DEFINE(float32, float, float)
DEFINE(float64, double, double)
DEFINE(float16, __half, float)
DEFINE(bfloat16, __nv_bfloat16, float)

extern "C" int64_t focal_blocks(int64_t n, int64_t bytes_per_element) {
  return libra::focal_blocks(n, static_cast<size_t>(bytes_per_element));
}
