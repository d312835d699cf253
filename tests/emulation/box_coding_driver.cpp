// The GPU's box coding in the emulation: the launch functions of box_coding_cuda.cu.
#include "box_coding/box_coding_kernel.cuh"

using libra::Four;

extern "C" int run_encode(const float* references, const float* targets, const int64_t* index,
                          const int64_t* target_index, float* deltas, int64_t images, int64_t rows, int64_t target_rows,
                          int64_t slots, int64_t shared, const float* stds) {
  return libra::launch_encode_boxes<float>({reinterpret_cast<const Four<float>*>(references),
                                            reinterpret_cast<const Four<float>*>(targets),
                                            index,
                                            target_index,
                                            reinterpret_cast<Four<float>*>(deltas),
                                            images,
                                            rows,
                                            target_rows,
                                            slots,
                                            shared != 0,
                                            {stds[0], stds[1], stds[2], stds[3]}},
                                           nullptr);
}

// gradient: null for the forward. Of the backward `index` rises, and `boxes` is the gradient of all rows.
extern "C" int run_decode(const float* gradient, const float* references, const float* deltas, const int64_t* index,
                          const float* sizes, float* boxes, int64_t images, int64_t rows, int64_t slots,
                          int64_t classes, int64_t shared, const float* stds) {
  const libra::DecodeTensors<float> tensors{reinterpret_cast<const Four<float>*>(references),
                                            reinterpret_cast<const Four<float>*>(deltas),
                                            gradient ? nullptr : index,
                                            sizes,
                                            reinterpret_cast<Four<float>*>(boxes),
                                            images,
                                            rows,
                                            gradient ? rows : slots,
                                            classes,
                                            shared != 0,
                                            {stds[0], stds[1], stds[2], stds[3]}};
  if (!gradient) return libra::launch_decode_boxes(tensors, nullptr);
  return libra::launch_decode_boxes_backward<float>(
      {reinterpret_cast<const Four<float>*>(gradient), index, slots, classes}, tensors, nullptr);
}
