// New tensors and contiguous ones, without the dispatcher's search for an operation by its name, which costs a small op
// more than its work.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace libra {

// Contiguous, and at an address that is a multiple of `alignment` bytes: a tensor made of foreign memory may begin
// anywhere.
inline torch::stable::Tensor make_contiguous(const torch::stable::Tensor& tensor, uintptr_t alignment = 8) {
  if (!tensor.is_contiguous()) return torch::stable::contiguous(tensor);
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % alignment ? torch::stable::clone(tensor) : tensor;
}

// Not initialised, with these strides; device and, unless given, dtype of `like`.
inline torch::stable::Tensor make_strided(const torch::stable::Tensor& like,
                                          torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                          torch::headeronly::IntHeaderOnlyArrayRef strides,
                                          std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  int32_t type, device;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  if (dtype) type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  AtenTensorHandle result;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  type, device, like.get_device_index(), &result));
  return torch::stable::Tensor(result);
}

// The same, contiguous.
inline torch::stable::Tensor make_empty(const torch::stable::Tensor& like,
                                        torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                        std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t dim = sizes.size(); dim-- > 0; stride *= sizes[dim] > 1 ? sizes[dim] : 1) strides[dim] = stride;
  return make_strided(like, sizes, strides, dtype);
}

}  // namespace libra
