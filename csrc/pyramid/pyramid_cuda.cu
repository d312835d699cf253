// integrate_pyramid, scatter_pyramid and their backward passes on the GPU: check, allocate, launch, register.
#include <torch/csrc/stable/library.h>

#include "common/cuda_launch.h"
#include "pyramid/pyramid_check.h"
#include "pyramid/pyramid_kernel.cuh"

namespace libra {
namespace {

// name: the argument whose sizes say how much is written; written: what is.
void check_packs(cudaError_t error, const char* name, const PyramidTensors& written, const char* op) {
  int64_t elements = 0;
  for (const Tensor& map : written) elements += map.numel();
  STD_TORCH_CHECK(error != kTooManyPacks, name, ": expected at most 2^32 - 1 elements of the results (or packs of 16 ",
                  "bytes, of channels that are neighbours in memory), got ", elements,
                  " elements; pass fewer images at a time");
  check_launch(error, op);
}

std::tuple<Tensor, Tensor> integrate_cuda(PyramidTensors features, int64_t level, bool channels_last,
                                          int64_t index_bytes) {
  STD_TORCH_CHECK(!features.empty(), "features: expected 1 map at least");
  const torch::stable::accelerator::DeviceGuard guard(features[0].get_device_index());
  const auto arguments = PyramidArguments::check(features, level, channels_last, "features");
  const PyramidSizes sizes = arguments.sizes();
  Tensor mean = arguments.make_map(sizes.height, sizes.width);
  Tensor index = arguments.make_index(/*integrate=*/true, index_bytes);
  with_types<__half, __nv_bfloat16>(mean, index, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using I = typename decltype(index_type)::type;
    check_packs(launch_integrate<T, I>(channels_last, read_maps<T>(arguments), sizes, write_map<T>(mean),
                                       index.numel() ? write<I>(index) : nullptr, current_stream(mean)),
                "features", {mean}, "integrate_pyramid");
  });
  return {mean, index};
}

PyramidTensors integrate_backward_cuda(Tensor grad, Tensor index, std::vector<int64_t> heights,
                                       std::vector<int64_t> widths, int64_t level, bool channels_last) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const auto arguments = check_integrate_backward(grad, heights, widths, level, channels_last);
  const Tensor gradient = arguments.check_refined(grad, "grad"), where = arguments.check_index(index, true);
  with_types<__half, __nv_bfloat16>(gradient, where, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using I = typename decltype(index_type)::type;
    check_packs(launch_integrate_backward<T, I>(channels_last, read_map<T>(gradient), arguments.sizes(), read<I>(where),
                                                write_maps<T>(arguments.maps, level), current_stream(gradient)),
                "heights, widths", arguments.maps, "integrate_pyramid_backward");
  });
  return arguments.maps;
}

std::tuple<PyramidTensors, Tensor> scatter_cuda(PyramidTensors features, Tensor refined, int64_t level,
                                                bool channels_last, int64_t index_bytes) {
  const torch::stable::accelerator::DeviceGuard guard(refined.get_device_index());
  const auto arguments = PyramidArguments::check(features, level, channels_last, "features");
  const Tensor map = arguments.check_refined(refined, "refined");
  const PyramidTensors outputs = arguments.make_maps();
  Tensor index = arguments.make_index(/*integrate=*/false, index_bytes);
  with_types<__half, __nv_bfloat16>(map, index, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using I = typename decltype(index_type)::type;
    check_packs(launch_scatter<T, I>(channels_last, read_maps<T>(arguments), read_map<T>(map), arguments.sizes(),
                                     write_maps<T>(outputs, level), index.numel() ? write<I>(index) : nullptr,
                                     current_stream(map)),
                "features", outputs, "scatter_pyramid");
  });
  return {outputs, index};
}

Tensor scatter_backward_cuda(PyramidTensors grads, Tensor index, int64_t level, bool channels_last) {
  const torch::stable::accelerator::DeviceGuard guard(index.get_device_index());
  const auto arguments = PyramidArguments::check(grads, level, channels_last, "grads");
  const Tensor where = arguments.check_index(index, false);
  const PyramidSizes sizes = arguments.sizes();
  const Tensor result = arguments.make_map(sizes.height, sizes.width);
  with_types<__half, __nv_bfloat16>(result, where, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using I = typename decltype(index_type)::type;
    check_packs(launch_scatter_backward<T, I>(channels_last, read_maps<T>(arguments), sizes, read<I>(where),
                                              write_map<T>(result), current_stream(result)),
                "grads", {result}, "scatter_pyramid_backward");
  });
  return result;
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CUDA, m) {
  m.impl("integrate_pyramid", TORCH_BOX(&libra::integrate_cuda));
  m.impl("integrate_pyramid_backward", TORCH_BOX(&libra::integrate_backward_cuda));
  m.impl("scatter_pyramid", TORCH_BOX(&libra::scatter_cuda));
  m.impl("scatter_pyramid_backward", TORCH_BOX(&libra::scatter_backward_cuda));
}
