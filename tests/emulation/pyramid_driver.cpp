// The GPU's integrate_pyramid, scatter_pyramid and their backward passes in the emulation: the launch functions of
// pyramid_cuda.cu, on levels that lie one behind the other in one buffer.
#include "pyramid/pyramid_kernel.cuh"

namespace {

// plan: levels, level, batch, channels, channels-last, then height and width of each level.
struct Plan {
  const int64_t* plan;
  bool channels_last() const { return plan[4] != 0; }
  libra::PyramidSizes sizes() const {
    const int64_t* refine = plan + 5 + 2 * plan[1];
    return {plan[2], plan[3], static_cast<int32_t>(refine[0]), static_cast<int32_t>(refine[1])};
  }
  template <class T>
  libra::Map<T> map(T* data, int level) const {
    const int64_t channels = plan[3], height = plan[5 + 2 * level], width = plan[6 + 2 * level];
    const int32_t h = static_cast<int32_t>(height), w = static_cast<int32_t>(width);
    if (channels_last()) return {data, h, w, channels * height * width, 1, width * channels, channels};
    return {data, h, w, channels * height * width, height * width, width, 1};
  }
  template <class T>
  libra::Map<T> refined(T* data) const {
    return map(data, static_cast<int>(plan[1]));
  }
  template <class T>
  libra::Pyramid<T> levels(T* data) const {
    libra::Pyramid<T> result{{}, static_cast<int32_t>(plan[0]), static_cast<int32_t>(plan[1])};
    for (int l = 0; l < result.count; ++l) {
      result.levels[l] = map(data, l);
      data += plan[2] * plan[3] * plan[5 + 2 * l] * plan[6 + 2 * l];
    }
    return result;
  }
};

}  // namespace

#define DRIVE(name, T, I)                                                                                           \
  extern "C" int run_integrate_##name(const int64_t* plan, const T* levels, T* mean, I* index) {                    \
    const Plan p{plan};                                                                                             \
    return libra::launch_integrate<T, I>(p.channels_last(), p.levels(levels), p.sizes(), p.refined(mean), index,    \
                                         nullptr);                                                                  \
  }                                                                                                                 \
  extern "C" int run_integrate_backward_##name(const int64_t* plan, const T* gradient, const I* index, T* levels) { \
    const Plan p{plan};                                                                                             \
    return libra::launch_integrate_backward<T, I>(p.channels_last(), p.refined(gradient), p.sizes(), index,         \
                                                  p.levels(levels), nullptr);                                       \
  }                                                                                                                 \
  extern "C" int run_scatter_##name(const int64_t* plan, const T* levels, const T* refined, T* outputs, I* index) { \
    const Plan p{plan};                                                                                             \
    return libra::launch_scatter<T, I>(p.channels_last(), p.levels(levels), p.refined(refined), p.sizes(),          \
                                       p.levels(outputs), index, nullptr);                                          \
  }                                                                                                                 \
  extern "C" int run_scatter_backward_##name(const int64_t* plan, const T* gradients, const I* index, T* result) {  \
    const Plan p{plan};                                                                                             \
    return libra::launch_scatter_backward<T, I>(p.channels_last(), p.levels(gradients), p.sizes(), index,           \
                                                p.refined(result), nullptr);                                        \
  }

DRIVE(float32, float, uint8_t)
DRIVE(float32_wide, float, int32_t)
DRIVE(float64, double, uint8_t)
DRIVE(float16, __half, uint8_t)
DRIVE(bfloat16, __nv_bfloat16, uint8_t)
