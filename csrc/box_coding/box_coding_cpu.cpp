// Box coding on torch tensors of the CPU: checks, allocates, and calls box_coding_cpu_kernel.cpp.
#include <torch/csrc/stable/library.h>

#include "box_coding/box_coding_check.h"
#include "box_coding/box_coding_cpu_kernel.h"

namespace libra {
namespace {

void check_range(bool fits, const char* op) {
  STD_TORCH_CHECK(fits, op, ": index out of range; every position must be one of a row");
}

Tensor encode_boxes_cpu(Tensor references, Tensor targets, std::optional<Tensor> index,
                        std::optional<Tensor> target_index, std::vector<double> delta_stds) {
  const auto a = EncodeArguments::check(references, targets, index, target_index, delta_stds);
  Tensor deltas = a.output();
  check_range(targets.scalar_type() == ScalarType::Float ? encode_boxes(a.tensors<float>(deltas), torch_threads)
                                                         : encode_boxes(a.tensors<double>(deltas), torch_threads),
              "encode_boxes");
  return deltas;
}

Tensor decode_boxes_cpu(Tensor references, Tensor deltas, std::optional<Tensor> index, std::vector<double> delta_stds,
                        std::optional<Tensor> sizes) {
  const auto a = DecodeArguments::check(references, deltas, index, delta_stds, sizes);
  Tensor boxes = a.output();
  check_range(deltas.scalar_type() == ScalarType::Float ? decode_boxes(a.tensors<float>(boxes), torch_threads)
                                                        : decode_boxes(a.tensors<double>(boxes), torch_threads),
              "decode_boxes");
  return boxes;
}

Tensor decode_boxes_backward_cpu(Tensor grad, Tensor references, Tensor deltas, std::optional<Tensor> index,
                                 std::vector<double> delta_stds, std::optional<Tensor> sizes) {
  const auto a = DecodeGradientArguments::check(grad, references, deltas, index, delta_stds, sizes);
  Tensor result = a.forward.output();
  if (deltas.scalar_type() == ScalarType::Float) {
    decode_boxes_backward(a.gradients<float>(), a.forward.tensors<float>(result), torch_threads);
  } else {
    decode_boxes_backward(a.gradients<double>(), a.forward.tensors<double>(result), torch_threads);
  }
  return result;
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) {
  m.impl("encode_boxes", TORCH_BOX(&libra::encode_boxes_cpu));
  m.impl("decode_boxes", TORCH_BOX(&libra::decode_boxes_cpu));
  m.impl("decode_boxes_backward", TORCH_BOX(&libra::decode_boxes_backward_cpu));
}
