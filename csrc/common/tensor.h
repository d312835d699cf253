// What every op's torch side needs: checks as the last line of defence (the Python side has said it more kindly), typed
// pointers, and loops over threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

#include "common/parallel.h"

namespace libra {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_dtype(const Tensor& tensor, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": expected dtype ", dtype, ", got ", tensor.scalar_type());
}

inline void check_floating(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double, name,
                  ": expected dtype float32 or float64, got ", tensor.scalar_type());
}

inline void check_dim(const Tensor& tensor, int64_t dim, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == dim, name, ": expected ", dim, " dimensions, got ", tensor.dim());
}

inline void check_size(const Tensor& tensor, int64_t dim, int64_t size, const char* name) {
  STD_TORCH_CHECK(tensor.size(dim) == size, name, ": expected size ", size, " in dimension ", dim, ", got ",
                  tensor.size(dim));
}

inline void check_same_device(const Tensor& tensor, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() == other.is_cuda() && tensor.get_device_index() == other.get_device_index(), name,
                  ": expected on the same device as the other tensors");
}

template <class T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* write(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// torch's threads, for a CPU kernel.
inline void torch_threads(int64_t n, int64_t grain, LoopBody body) {
  torch::stable::parallel_for(0, n, grain,
                              [body](int64_t begin, int64_t end) { body.call(body.function, begin, end); });
}

}  // namespace libra
