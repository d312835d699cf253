// The GPU's nms_padded in the emulation: the launch functions of nms_padded_cuda.cu, between which the test sorts.
#include "nms_padded/nms_padded_kernel.cuh"

namespace {

libra::NmsRules rules(double iou_threshold, double score_threshold, int64_t has_score_threshold, int64_t max_output) {
  return {libra::IouBound::make(iou_threshold), float(score_threshold), has_score_threshold != 0, max_output};
}

// hash_bits < 0: as the GPU's wrapper chooses them. Fewer make groups share a segment.
libra::NmsShape shape_of(int64_t batch, int64_t slots, int64_t hash_bits) {
  libra::NmsShape shape = libra::NmsShape::make(batch, slots);
  if (hash_bits >= 0) shape.hash_bits = int(hash_bits);
  return shape;
}

}  // namespace

extern "C" int run_nms_keys(const libra::Box<float>* boxes, const float* scores, const int64_t* groups,
                            const uint8_t* valid, int64_t batch, int64_t slots, int64_t hash_bits,
                            double score_threshold, int64_t has_score_threshold, int64_t* keys) {
  return libra::launch_nms_keys({boxes, scores, groups, valid}, shape_of(batch, slots, hash_bits),
                                rules(0.5, score_threshold, has_score_threshold, 1), keys, nullptr);
}

extern "C" int run_nms_padded(const libra::Box<float>* boxes, const float* scores, const int64_t* groups,
                              const uint8_t* valid, int64_t batch, int64_t slots, int64_t hash_bits,
                              double iou_threshold, int64_t max_output, const int64_t* keys, const int64_t* order,
                              uint64_t* numbers, libra::Box<float>* kept, int64_t* index, bool* found) {
  return libra::launch_nms_padded({boxes, scores, groups, valid}, batch, shape_of(batch, slots, hash_bits),
                                  rules(iou_threshold, 0, 0, max_output), {keys, order, numbers, kept}, {index, found},
                                  nullptr);
}
