// The GPU's multiscale_roi_align and its backward in the emulation: the launch functions of
// multiscale_roi_align_cuda.cu on two maps, whose sizes, and whether they are channels-last, come as [height, width,
// height, width, channels last].
#include "multiscale_roi_align/multiscale_roi_align_backward_kernel.cuh"

namespace {

libra::RoiRules rules_of(int64_t output_size, int64_t sampling_ratio) {
  libra::RoiRules rules{};
  rules.scale[0] = 0.25, rules.scale[1] = 0.125;
  rules.levels = 2;
  rules.output_size = static_cast<int>(output_size);
  rules.sampling_ratio = static_cast<int>(sampling_ratio);
  rules.finest_scale = 16;
  return rules;
}

template <class S>
libra::RoiMaps<S> maps_of(S* first, S* second, const int64_t* layout, int64_t channels) {
  libra::RoiMaps<S> maps{};
  for (int level = 0; level < 2; ++level) {
    const int64_t height = layout[2 * level], width = layout[2 * level + 1], image = channels * height * width;
    S* data = level ? second : first;
    if (layout[4]) {
      maps.level[level] = {data,    static_cast<int>(height), static_cast<int>(width), image, 1, width * channels,
                           channels};
    } else {
      maps.level[level] = {data, static_cast<int>(height), static_cast<int>(width), image, height * width, width, 1};
    }
  }
  return maps;
}

template <class S>
using Number = typename libra::RoiNumber<S>::type;

template <class S>
int forward(const S* first, const S* second, const int64_t* layout, const Number<S>* boxes, const uint8_t* valid,
            S* pooled, int64_t batch, int64_t slots, int64_t channels, int64_t output_size, int64_t sampling_ratio) {
  return libra::launch_multiscale_roi_align<S>(maps_of<const S>(first, second, layout, channels), boxes, valid, pooled,
                                               batch, slots, channels, rules_of(output_size, sampling_ratio), nullptr);
}

template <class S>
int backward(const S* gradient, const int64_t* layout, const Number<S>* boxes, const uint8_t* valid, S* first,
             S* second, int64_t batch, int64_t slots, int64_t channels, int64_t output_size, int64_t sampling_ratio) {
  return libra::launch_multiscale_roi_align_backward<S>(gradient, boxes, valid,
                                                        maps_of<S>(first, second, layout, channels), batch, slots,
                                                        channels, rules_of(output_size, sampling_ratio), nullptr);
}

}  // namespace

#define LIBRA_ROI_ALIGN(name, S)                                                                                      \
  extern "C" int run_forward_##name(const S* first, const S* second, const int64_t* layout, const Number<S>* boxes,   \
                                    const uint8_t* valid, S* pooled, int64_t batch, int64_t slots, int64_t channels,  \
                                    int64_t output_size, int64_t sampling_ratio) {                                    \
    return forward(first, second, layout, boxes, valid, pooled, batch, slots, channels, output_size, sampling_ratio); \
  }                                                                                                                   \
  extern "C" int run_backward_##name(const S* gradient, const int64_t* layout, const Number<S>* boxes,                \
                                     const uint8_t* valid, S* first, S* second, int64_t batch, int64_t slots,         \
                                     int64_t channels, int64_t output_size, int64_t sampling_ratio) {                 \
    return backward(gradient, layout, boxes, valid, first, second, batch, slots, channels, output_size,               \
                    sampling_ratio);                                                                                  \
  }
LIBRA_ROI_ALIGN(float, float)
LIBRA_ROI_ALIGN(double, double)
LIBRA_ROI_ALIGN(half, __half)
LIBRA_ROI_ALIGN(bfloat16, __nv_bfloat16)
