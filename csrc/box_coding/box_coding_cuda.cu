// Box coding on the GPU: check, allocate, launch, register.
#include <torch/csrc/stable/library.h>

#include "box_coding/box_coding_check.h"
#include "box_coding/box_coding_kernel.cuh"
#include "common/cuda_launch.h"

namespace libra {
namespace {

void check_grid(const Tensor& rows, int64_t elements, const char* name) {
  const int64_t images = rows.size(0);
  STD_TORCH_CHECK(coding_blocks(images, elements) <= INT32_MAX, name, ": expected at most 2^31 - 1 blocks of up to ",
                  kCodingThreads, " boxes of an image, got ", images, " images of ", elements,
                  " boxes; pass fewer images at a time");
}

Tensor encode_boxes_cuda(Tensor references, Tensor targets, std::optional<Tensor> index,
                         std::optional<Tensor> target_index, std::vector<double> delta_stds) {
  const torch::stable::accelerator::DeviceGuard guard(targets.get_device_index());
  const auto a = EncodeArguments::check(references, targets, index, target_index, delta_stds);
  check_grid(targets, a.slots, "targets");
  Tensor deltas = a.output();
  const cudaStream_t stream = current_stream(deltas);
  check_launch(targets.scalar_type() == ScalarType::Float ? launch_encode_boxes(a.tensors<float>(deltas), stream)
                                                          : launch_encode_boxes(a.tensors<double>(deltas), stream),
               "encode_boxes");
  return deltas;
}

Tensor decode_boxes_cuda(Tensor references, Tensor deltas, std::optional<Tensor> index, std::vector<double> delta_stds,
                         std::optional<Tensor> sizes) {
  const torch::stable::accelerator::DeviceGuard guard(deltas.get_device_index());
  const auto a = DecodeArguments::check(references, deltas, index, delta_stds, sizes);
  check_grid(deltas, a.slots * deltas.size(2), "deltas");
  Tensor boxes = a.output();
  const cudaStream_t stream = current_stream(boxes);
  check_launch(deltas.scalar_type() == ScalarType::Float ? launch_decode_boxes(a.tensors<float>(boxes), stream)
                                                         : launch_decode_boxes(a.tensors<double>(boxes), stream),
               "decode_boxes");
  return boxes;
}

Tensor decode_boxes_backward_cuda(Tensor grad, Tensor references, Tensor deltas, std::optional<Tensor> index,
                                  std::vector<double> delta_stds, std::optional<Tensor> sizes) {
  const torch::stable::accelerator::DeviceGuard guard(deltas.get_device_index());
  const auto a = DecodeGradientArguments::check(grad, references, deltas, index, delta_stds, sizes);
  check_grid(deltas, a.forward.slots * deltas.size(2), "deltas");
  Tensor result = a.forward.output();
  const cudaStream_t stream = current_stream(result);
  check_launch(deltas.scalar_type() == ScalarType::Float
                   ? launch_decode_boxes_backward(a.gradients<float>(), a.forward.tensors<float>(result), stream)
                   : launch_decode_boxes_backward(a.gradients<double>(), a.forward.tensors<double>(result), stream),
               "decode_boxes_backward");
  return result;
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CUDA, m) {
  m.impl("encode_boxes", TORCH_BOX(&libra::encode_boxes_cuda));
  m.impl("decode_boxes", TORCH_BOX(&libra::decode_boxes_cuda));
  m.impl("decode_boxes_backward", TORCH_BOX(&libra::decode_boxes_backward_cuda));
}
