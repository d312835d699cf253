// integrate_pyramid, scatter_pyramid and their backward passes on torch tensors of the CPU: checks, allocates, and
// calls pyramid_cpu_channels_last.cpp or pyramid_cpu_planes.cpp.
#include <torch/csrc/stable/library.h>

#include "pyramid/pyramid_check.h"
#include "pyramid/pyramid_cpu_kernel.h"

namespace libra {
namespace {

std::tuple<Tensor, Tensor> integrate_cpu(PyramidTensors features, int64_t level, bool channels_last,
                                         int64_t index_bytes) {
  const auto arguments = PyramidArguments::check(features, level, channels_last, "features");
  const PyramidSizes sizes = arguments.sizes();
  Tensor mean = arguments.make_map(sizes.height, sizes.width);
  Tensor index = arguments.make_index(/*integrate=*/true, index_bytes);
  with_types<Half, BFloat16>(mean, index, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using I = typename decltype(index_type)::type;
    const auto integrate = channels_last ? ChannelsLast<T, I>::integrate : Planes<T, I>::integrate;
    integrate(read_maps<T>(arguments), sizes, write_map<T>(mean), index.numel() ? write<I>(index) : nullptr,
              torch_threads);
  });
  return {mean, index};
}

PyramidTensors integrate_backward_cpu(Tensor grad, Tensor index, std::vector<int64_t> heights,
                                      std::vector<int64_t> widths, int64_t level, bool channels_last) {
  const auto arguments = check_integrate_backward(grad, heights, widths, level, channels_last);
  const Tensor gradient = arguments.check_refined(grad, "grad"), where = arguments.check_index(index, true);
  with_types<Half, BFloat16>(gradient, where, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using I = typename decltype(index_type)::type;
    const auto backward = channels_last ? ChannelsLast<T, I>::integrate_backward : Planes<T, I>::integrate_backward;
    backward(read_map<T>(gradient), arguments.sizes(), read<I>(where), write_maps<T>(arguments.maps, level),
             torch_threads);
  });
  return arguments.maps;
}

std::tuple<PyramidTensors, Tensor> scatter_cpu(PyramidTensors features, Tensor refined, int64_t level,
                                               bool channels_last, int64_t index_bytes) {
  const auto arguments = PyramidArguments::check(features, level, channels_last, "features");
  const Tensor map = arguments.check_refined(refined, "refined");
  const PyramidTensors outputs = arguments.make_maps();
  Tensor index = arguments.make_index(/*integrate=*/false, index_bytes);
  with_types<Half, BFloat16>(map, index, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using I = typename decltype(index_type)::type;
    const auto scatter = channels_last ? ChannelsLast<T, I>::scatter : Planes<T, I>::scatter;
    scatter(read_maps<T>(arguments), read_map<T>(map), arguments.sizes(), write_maps<T>(outputs, level),
            index.numel() ? write<I>(index) : nullptr, torch_threads);
  });
  return {outputs, index};
}

Tensor scatter_backward_cpu(PyramidTensors grads, Tensor index, int64_t level, bool channels_last) {
  const auto arguments = PyramidArguments::check(grads, level, channels_last, "grads");
  const Tensor where = arguments.check_index(index, false);
  const PyramidSizes sizes = arguments.sizes();
  const Tensor result = arguments.make_map(sizes.height, sizes.width);
  with_types<Half, BFloat16>(result, where, [&](auto type, auto index_type) {
    using T = typename decltype(type)::type;
    using I = typename decltype(index_type)::type;
    const auto backward = channels_last ? ChannelsLast<T, I>::scatter_backward : Planes<T, I>::scatter_backward;
    backward(read_maps<T>(arguments), sizes, read<I>(where), write_map<T>(result), torch_threads);
  });
  return result;
}

}  // namespace
}  // namespace libra

STABLE_TORCH_LIBRARY_IMPL(libra_ops, CPU, m) {
  m.impl("integrate_pyramid", TORCH_BOX(&libra::integrate_cpu));
  m.impl("integrate_pyramid_backward", TORCH_BOX(&libra::integrate_backward_cpu));
  m.impl("scatter_pyramid", TORCH_BOX(&libra::scatter_cpu));
  m.impl("scatter_pyramid_backward", TORCH_BOX(&libra::scatter_backward_cpu));
}
