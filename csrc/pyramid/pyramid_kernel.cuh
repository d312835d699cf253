// The balanced pyramid on the GPU: one launch for each operation and direction, over the elements of what it writes; no
// torch headers.
//
// A thread has one cell and, where channels are neighbours in memory, as many of its channels as 16 bytes hold. It
// gathers what the cell needs, so that nothing is added by atomics and every sum has one order.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/cuda_compat.cuh"
#include "common/half.cuh"
#include "pyramid/pyramid_math.h"

namespace libra {

constexpr int kPyramidThreads = 256;
constexpr int64_t kMostPacks = UINT32_MAX;  // of a launch, whose items are counted in 32 bits: divisions are cheap
constexpr cudaError_t kTooManyPacks = cudaErrorInvalidConfiguration;  // no launch of fewer gives it

// What is computed with, and an offset in a window, which is as wide.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// V neighbours in one access.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T value[V];
};
template <int V, class T>
__device__ __forceinline__ Pack<std::remove_const_t<T>, V> load_pack(T* from) {
  return *reinterpret_cast<const Pack<std::remove_const_t<T>, V>*>(from);
}
template <class T, int V>
__device__ __forceinline__ void store_pack(T* to, const Sum<T> (&values)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int k = 0; k < V; ++k) narrow(values[k], pack.value[k]);
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}
template <class I, int V>
__device__ __forceinline__ void store_offsets(I* to, const int32_t (&offsets)[V]) {
  Pack<I, V> pack;
#pragma unroll
  for (int k = 0; k < V; ++k) pack.value[k] = static_cast<I>(offsets[k]);
  *reinterpret_cast<Pack<I, V>*>(to) = pack;
}

// One element of a map, or V neighbouring channels.
struct Place {
  int64_t b, c;
  int32_t y, x;
};

__device__ __forceinline__ uint32_t take_digit(uint32_t& rest, uint32_t base) {
  const uint32_t all = rest;
  rest = all / base;
  return all - rest * base;
}

// The place of pack `item` of a dense map; kLast: channels are neighbours.
template <bool kLast, int V>
__device__ __forceinline__ Place locate(uint32_t item, int64_t channels, int32_t height, int32_t width) {
  const auto packs = static_cast<uint32_t>(channels / V);
  Place place{};
  if constexpr (kLast) place.c = static_cast<int64_t>(take_digit(item, packs)) * V;
  place.x = static_cast<int32_t>(take_digit(item, static_cast<uint32_t>(width)));
  place.y = static_cast<int32_t>(take_digit(item, static_cast<uint32_t>(height)));
  if constexpr (!kLast) place.c = static_cast<int64_t>(take_digit(item, packs));
  place.b = static_cast<int64_t>(item);
  return place;
}

// Position of an element in a dense map of the format.
template <bool kLast>
__device__ __forceinline__ int64_t dense(int64_t b, int64_t c, int32_t y, int32_t x, int64_t channels, int32_t height,
                                         int32_t width) {
  return kLast ? ((b * height + y) * width + x) * channels + c : ((b * channels + c) * height + y) * width + x;
}

__device__ __forceinline__ int32_t offset_in(Span rows, Span columns, int32_t y, int32_t x) {
  return (y - rows.first) * (columns.last - columns.first) + x - columns.first;
}

// The largest values of a window, and where they lie.
template <int V, class T>
__device__ __forceinline__ void largest_of_window(const Map<const T>& map, int64_t b, int64_t c, Span rows,
                                                  Span columns, Sum<T> (&largest)[V], int32_t (&offsets)[V]) {
#pragma unroll
  for (int k = 0; k < V; ++k) largest[k] = -static_cast<Sum<T>>(INFINITY), offsets[k] = 0;
  int32_t offset = 0;
  for (int32_t y = rows.first; y < rows.last; ++y) {
    const T* from = map.at(b, c, y, columns.first);
    for (int32_t x = columns.first; x < columns.last; ++x, ++offset, from += map.column) {
      const auto pack = load_pack<V>(from);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const Sum<T> value = widen(pack.value[k]);
        const bool take = is_larger(value, largest[k]);
        largest[k] = take ? value : largest[k];
        offsets[k] = take ? offset : offsets[k];
      }
    }
  }
}

template <int V, class T>
__device__ __forceinline__ void add_pack(const T* from, Sum<std::remove_const_t<T>> (&sum)[V]) {
  const auto pack = load_pack<V>(from);
#pragma unroll
  for (int k = 0; k < V; ++k) sum[k] += widen(pack.value[k]);
}

// Adds the values of those channels whose window had its largest at `offset`.
template <int V, class T, class I>
__device__ __forceinline__ void add_where(const T* from, const I* index, int32_t offset, Sum<T> divisor,
                                          Sum<T> (&sum)[V]) {
  const auto pack = load_pack<V>(from);
  const auto offsets = load_pack<V>(index);
#pragma unroll
  for (int k = 0; k < V; ++k)
    sum[k] += static_cast<int32_t>(offsets.value[k]) == offset ? widen(pack.value[k]) / divisor : Sum<T>(0);
}

template <class T, class I, int V, bool kLast>
__global__ void __launch_bounds__(kPyramidThreads)
    integrate_kernel(Pyramid<const T> levels, PyramidSizes sizes, Map<T> mean, I* index, int64_t packs) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kPyramidThreads + threadIdx.x;
  if (item >= packs) return;
  const Place at = locate<kLast, V>(static_cast<uint32_t>(item), sizes.channels, sizes.height, sizes.width);
  Sum<T> sum[V] = {};
  for (int l = 0; l < levels.count; ++l) {
    const Map<const T>& map = levels.levels[l];
    if (l < levels.refine) {
      Sum<T> largest[V];
      int32_t offsets[V];
      largest_of_window<V>(map, at.b, at.c, span(at.y, sizes.height, map.height), span(at.x, sizes.width, map.width),
                           largest, offsets);
#pragma unroll
      for (int k = 0; k < V; ++k) sum[k] += largest[k];
      if (index) store_offsets(index + (l * packs + item) * V, offsets);
    } else {
      const int32_t y = nearest(at.y, nearest_scale(sizes.height, map.height), map.height);
      const int32_t x = nearest(at.x, nearest_scale(sizes.width, map.width), map.width);
      add_pack<V>(map.at(at.b, at.c, y, x), sum);
    }
  }
#pragma unroll
  for (int k = 0; k < V; ++k) sum[k] /= static_cast<Sum<T>>(levels.count);
  store_pack(mean.at(at.b, at.c, at.y, at.x), sum);
}

// The levels of a launch one behind the other: where each ends, in packs.
struct LevelEnds {
  int64_t end[kMostLevels];
};

// The level that `item` lies in; it becomes the item of that level.
__device__ __forceinline__ int find_level(const LevelEnds& ends, int64_t& item) {
  int level = 0;
  int64_t start = 0;
#pragma unroll
  for (int l = 0; l < kMostLevels - 1; ++l) {
    if (item >= ends.end[l]) level = l + 1, start = ends.end[l];
  }
  item -= start;
  return level;
}

template <class T, class I, int V, bool kLast>
__global__ void __launch_bounds__(kPyramidThreads)
    integrate_backward_kernel(Map<const T> gradient, PyramidSizes sizes, const I* index, Pyramid<T> levels,
                              LevelEnds ends, int64_t packs) {
  int64_t item = static_cast<int64_t>(blockIdx.x) * kPyramidThreads + threadIdx.x;
  if (item >= packs) return;
  const int level = find_level(ends, item);
  const Map<T>& map = levels.levels[level];
  const Place at = locate<kLast, V>(static_cast<uint32_t>(item), sizes.channels, map.height, map.width);
  const bool finer = level < levels.refine;
  const auto divisor = static_cast<Sum<T>>(levels.count);
  const Span rows = finer ? span(at.y, map.height, sizes.height)
                          : nearest_span(at.y, sizes.height, map.height, nearest_scale(sizes.height, map.height));
  const Span columns = finer ? span(at.x, map.width, sizes.width)
                             : nearest_span(at.x, sizes.width, map.width, nearest_scale(sizes.width, map.width));
  Sum<T> sum[V] = {};
  for (int32_t i = rows.first; i < rows.last; ++i) {
    for (int32_t j = columns.first; j < columns.last; ++j) {
      const T* from = gradient.at(at.b, at.c, i, j);
      if (finer) {
        const int32_t offset =
            offset_in(span(i, sizes.height, map.height), span(j, sizes.width, map.width), at.y, at.x);
        const int64_t map_size = sizes.batch * sizes.channels * sizes.height * sizes.width;
        const I* where =
            index + level * map_size + dense<kLast>(at.b, at.c, i, j, sizes.channels, sizes.height, sizes.width);
        add_where<V>(from, where, offset, divisor, sum);
      } else {
        const auto pack = load_pack<V>(from);
#pragma unroll
        for (int k = 0; k < V; ++k) sum[k] += widen(pack.value[k]) / divisor;
      }
    }
  }
  store_pack(map.at(at.b, at.c, at.y, at.x), sum);
}

template <class T, class I, int V, bool kLast>
__global__ void __launch_bounds__(kPyramidThreads, 1)
    scatter_kernel(Pyramid<const T> levels, Map<const T> refined, PyramidSizes sizes, Pyramid<T> outputs, I* index,
                   LevelEnds ends, int64_t first_coarser, int64_t packs) {
  int64_t item = static_cast<int64_t>(blockIdx.x) * kPyramidThreads + threadIdx.x;
  if (item >= packs) return;
  const int64_t whole_item = item;
  const int level = find_level(ends, item);
  const Map<const T>& map = levels.levels[level];
  const Place at = locate<kLast, V>(static_cast<uint32_t>(item), sizes.channels, map.height, map.width);
  Sum<T> sum[V] = {};
  if (level <= levels.refine) {
    const int32_t y = nearest(at.y, nearest_scale(map.height, sizes.height), sizes.height);
    const int32_t x = nearest(at.x, nearest_scale(map.width, sizes.width), sizes.width);
    add_pack<V>(refined.at(at.b, at.c, y, x), sum);
  } else {
    int32_t offsets[V];
    largest_of_window<V>(refined, at.b, at.c, span(at.y, map.height, sizes.height), span(at.x, map.width, sizes.width),
                         sum, offsets);
    if (index) store_offsets(index + (whole_item - first_coarser) * V, offsets);
  }
  add_pack<V>(map.at(at.b, at.c, at.y, at.x), sum);
  store_pack(outputs.levels[level].at(at.b, at.c, at.y, at.x), sum);
}

template <class T, class I, int V, bool kLast>
__global__ void __launch_bounds__(kPyramidThreads)
    scatter_backward_kernel(Pyramid<const T> gradients, PyramidSizes sizes, const I* index, Map<T> result,
                            int64_t packs) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kPyramidThreads + threadIdx.x;
  if (item >= packs) return;
  const Place at = locate<kLast, V>(static_cast<uint32_t>(item), sizes.channels, sizes.height, sizes.width);
  Sum<T> sum[V] = {};
  for (int l = 0; l < gradients.count; ++l) {
    const Map<const T>& map = gradients.levels[l];
    const bool coarser = l > gradients.refine;
    const Span rows = coarser ? span(at.y, sizes.height, map.height)
                              : nearest_span(at.y, map.height, sizes.height, nearest_scale(map.height, sizes.height));
    const Span columns = coarser ? span(at.x, sizes.width, map.width)
                                 : nearest_span(at.x, map.width, sizes.width, nearest_scale(map.width, sizes.width));
    for (int32_t y = rows.first; y < rows.last; ++y) {
      for (int32_t x = columns.first; x < columns.last; ++x) {
        const T* from = map.at(at.b, at.c, y, x);
        if (coarser) {
          const int32_t offset =
              offset_in(span(y, map.height, sizes.height), span(x, map.width, sizes.width), at.y, at.x);
          const I* where = index + dense<kLast>(at.b, at.c, y, x, sizes.channels, map.height, map.width);
          add_where<V>(from, where, offset, Sum<T>(1), sum);
        } else {
          add_pack<V>(from, sum);
        }
      }
    }
    if (coarser) index += sizes.batch * sizes.channels * map.height * map.width;
  }
  store_pack(result.at(at.b, at.c, at.y, at.x), sum);
}

// Whether V channels of every cell can be one access.
template <class T>
bool takes_packs(const Map<T>& map, int64_t channels, int V) {
  const uintptr_t bytes = sizeof(T) * static_cast<uintptr_t>(V);
  return map.channel == 1 && channels % V == 0 && reinterpret_cast<uintptr_t>(map.data) % bytes == 0 &&
         map.image % V == 0 && map.row % V == 0 && map.column % V == 0;
}
template <class T>
bool takes_packs(const Pyramid<T>& maps, int64_t channels, int V) {
  bool all = true;
  for (int l = 0; l < maps.count; ++l) all = all && takes_packs(maps.levels[l], channels, V);
  return all;
}

template <class T>
LevelEnds level_ends(const Pyramid<T>& levels, const PyramidSizes& sizes, int V) {
  LevelEnds ends;
  int64_t end = 0;
  for (int l = 0; l < kMostLevels; ++l) {
    if (l < levels.count) {
      end += sizes.batch * (sizes.channels / V) * levels.levels[l].height * levels.levels[l].width;
    }
    ends.end[l] = end;
  }
  return ends;
}

inline dim3 pyramid_grid(int64_t packs) {
  return dim3(static_cast<unsigned>((packs + kPyramidThreads - 1) / kPyramidThreads));
}

// Calls run(V, whether channels are neighbours), both of them constants.
template <class T, class F>
cudaError_t with_packs(bool channels_last, bool in_packs, const F& run) {
  using False = std::false_type;
  using One = std::integral_constant<int, 1>;
  if (!channels_last) return run(One{}, False{});
  if constexpr (sizeof(T) < 8) {  // two float64 would take more registers than there are
    if (in_packs) return run(std::integral_constant<int, 16 / sizeof(T)>{}, std::true_type{});
  }
  return run(One{}, std::true_type{});
}

// The arguments are those of pyramid_cpu_kernel.h.
template <class T, class I>
cudaError_t launch_integrate(bool channels_last, const Pyramid<const T>& levels, const PyramidSizes& sizes,
                             const Map<T>& mean, I* index, cudaStream_t stream) {
  const bool in_packs =
      takes_packs(levels, sizes.channels, 16 / sizeof(T)) && takes_packs(mean, sizes.channels, 16 / sizeof(T));
  return with_packs<T>(channels_last, in_packs, [&](auto v, auto last) -> cudaError_t {
    constexpr int V = decltype(v)::value;
    const int64_t packs = sizes.batch * (sizes.channels / V) * sizes.height * sizes.width;
    if (packs == 0) return cudaSuccess;
    if (packs > kMostPacks) return kTooManyPacks;
    return launch(integrate_kernel<T, I, V, decltype(last)::value>, pyramid_grid(packs), dim3(kPyramidThreads), 0,
                  stream, levels, sizes, mean, index, packs);
  });
}

template <class T, class I>
cudaError_t launch_integrate_backward(bool channels_last, const Map<const T>& gradient, const PyramidSizes& sizes,
                                      const I* index, const Pyramid<T>& levels, cudaStream_t stream) {
  const bool in_packs =
      takes_packs(levels, sizes.channels, 16 / sizeof(T)) && takes_packs(gradient, sizes.channels, 16 / sizeof(T));
  return with_packs<T>(channels_last, in_packs, [&](auto v, auto last) -> cudaError_t {
    constexpr int V = decltype(v)::value;
    const LevelEnds ends = level_ends(levels, sizes, V);
    const int64_t packs = ends.end[kMostLevels - 1];
    if (packs == 0) return cudaSuccess;
    if (packs > kMostPacks) return kTooManyPacks;
    return launch(integrate_backward_kernel<T, I, V, decltype(last)::value>, pyramid_grid(packs), dim3(kPyramidThreads),
                  0, stream, gradient, sizes, index, levels, ends, packs);
  });
}

template <class T, class I>
cudaError_t launch_scatter(bool channels_last, const Pyramid<const T>& levels, const Map<const T>& refined,
                           const PyramidSizes& sizes, const Pyramid<T>& outputs, I* index, cudaStream_t stream) {
  constexpr int kPack = 16 / sizeof(T);
  const bool in_packs = takes_packs(levels, sizes.channels, kPack) && takes_packs(refined, sizes.channels, kPack) &&
                        takes_packs(outputs, sizes.channels, kPack);
  return with_packs<T>(channels_last, in_packs, [&](auto v, auto last) -> cudaError_t {
    constexpr int V = decltype(v)::value;
    const LevelEnds ends = level_ends(levels, sizes, V);
    const int64_t packs = ends.end[kMostLevels - 1];
    if (packs == 0) return cudaSuccess;
    if (packs > kMostPacks) return kTooManyPacks;
    return launch(scatter_kernel<T, I, V, decltype(last)::value>, pyramid_grid(packs), dim3(kPyramidThreads), 0, stream,
                  levels, refined, sizes, outputs, index, ends, ends.end[levels.refine], packs);
  });
}

template <class T, class I>
cudaError_t launch_scatter_backward(bool channels_last, const Pyramid<const T>& gradients, const PyramidSizes& sizes,
                                    const I* index, const Map<T>& result, cudaStream_t stream) {
  const bool in_packs =
      takes_packs(gradients, sizes.channels, 16 / sizeof(T)) && takes_packs(result, sizes.channels, 16 / sizeof(T));
  return with_packs<T>(channels_last, in_packs, [&](auto v, auto last) -> cudaError_t {
    constexpr int V = decltype(v)::value;
    const int64_t packs = sizes.batch * (sizes.channels / V) * sizes.height * sizes.width;
    if (packs == 0) return cudaSuccess;
    if (packs > kMostPacks) return kTooManyPacks;
    return launch(scatter_backward_kernel<T, I, V, decltype(last)::value>, pyramid_grid(packs), dim3(kPyramidThreads),
                  0, stream, gradients, sizes, index, result, packs);
  });
}

}  // namespace libra
