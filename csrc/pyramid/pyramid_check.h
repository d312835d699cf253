// What both backends of the pyramid's operations check and allocate.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/allocate.h"
#include "common/tensor.h"
#include "pyramid/pyramid_math.h"

namespace libra {

using PyramidTensors = std::vector<Tensor>;

inline ScalarType index_type(int64_t bytes) { return bytes == 4 ? ScalarType::Int : ScalarType::Byte; }

// Maps [B, C, H_l, W_l], and how their elements lie: channels are neighbours, or columns.
struct PyramidArguments {
  PyramidTensors maps;
  int64_t refine, batch, channels;
  bool channels_last;

  static PyramidArguments check(const PyramidTensors& maps, int64_t level, bool channels_last, const char* name) {
    STD_TORCH_CHECK(!maps.empty() && maps.size() <= kMostLevels, name, ": expected 1 to ", kMostLevels, " maps, got ",
                    maps.size());
    STD_TORCH_CHECK(level >= 0 && level < static_cast<int64_t>(maps.size()), "level: expected 0 to ", maps.size() - 1,
                    ", got ", level);
    check_dim(maps[0], 4, name);
    PyramidArguments result{{}, level, maps[0].size(0), maps[0].size(1), channels_last};
    for (const Tensor& map : maps) {
      result.check_map(map, maps[0].scalar_type(), name);
      check_same_device(map, maps[0], name);
      result.maps.push_back(result.readable(map));
    }
    return result;
  }

  void check_map(const Tensor& map, ScalarType dtype, const char* name) const {
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
                        dtype == ScalarType::BFloat16,
                    name, ": expected a floating dtype, got ", dtype);
    check_dtype(map, dtype, name);
    check_dim(map, 4, name);
    check_size(map, 0, batch, name);
    check_size(map, 1, channels, name);
    check_sides(map.size(2), map.size(3), name);
  }

  static void check_sides(int64_t height, int64_t width, const char* name) {
    STD_TORCH_CHECK(height >= 1 && width >= 1 && height <= kLongestSide && width <= kLongestSide, name,
                    ": expected 1 to ", kLongestSide, " cells a side, got ", height, " x ", width);
  }

  // Of the refine level's size, readable.
  Tensor check_refined(const Tensor& map, const char* name) const {
    check_map(map, maps[0].scalar_type(), name);
    check_same_device(map, maps[0], name);
    check_size(map, 2, maps[refine].size(2), name);
    check_size(map, 3, maps[refine].size(3), name);
    return readable(map);
  }

  PyramidSizes sizes() const {
    return {batch, channels, static_cast<int32_t>(maps[refine].size(2)), static_cast<int32_t>(maps[refine].size(3))};
  }

  // How many windows `index` has an element for, and that each of its elements can hold any of their cells.
  int64_t windows(bool integrate, int64_t index_bytes) const {
    STD_TORCH_CHECK(index_bytes == 0 || index_bytes == 1 || index_bytes == 4, "index_bytes: expected 0, 1 or 4, got ",
                    index_bytes);
    int64_t count = 0;
    for (int64_t l = integrate ? 0 : refine + 1; l < (integrate ? refine : static_cast<int64_t>(maps.size())); ++l) {
      const Tensor &small = maps[integrate ? refine : l], &large = maps[integrate ? l : refine];
      count += batch * channels * small.size(2) * small.size(3);
      const int64_t cells = widest_window(small.size(2), large.size(2)) * widest_window(small.size(3), large.size(3));
      STD_TORCH_CHECK(index_bytes != 1 || cells <= 256, "index_bytes: expected 4 for windows of ", cells, " cells");
      STD_TORCH_CHECK(cells <= INT32_MAX, "features: expected windows of less than 2^31 cells, got ", cells);
    }
    return count;
  }

  Tensor check_index(const Tensor& index, bool integrate) const {
    const bool bytes = index.scalar_type() == ScalarType::Byte;
    if (!bytes) check_dtype(index, ScalarType::Int, "index");
    check_same_device(index, maps[0], "index");
    check_dim(index, 1, "index");
    check_size(index, 0, windows(integrate, bytes ? 1 : 4), "index");
    return make_contiguous(index, bytes ? 1 : 4);
  }

  Tensor make_index(bool integrate, int64_t index_bytes) const {
    const int64_t count = windows(integrate, index_bytes);
    return make_empty(maps[0], {index_bytes ? count : 0}, index_type(index_bytes));
  }

  // Dense, in the format.
  static Tensor make_map(const Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width,
                         bool channels_last) {
    if (!channels_last) return make_empty(like, {batch, channels, height, width});
    return make_strided(like, {batch, channels, height, width},
                        {height * width * channels, 1, width * channels, channels});
  }
  Tensor make_map(int64_t height, int64_t width) const {
    return make_map(maps[0], batch, channels, height, width, channels_last);
  }
  PyramidTensors make_maps() const {
    PyramidTensors result;
    for (const Tensor& map : maps) result.push_back(make_map(map.size(2), map.size(3)));
    return result;
  }

  // As it is, if its elements can be read so; else a copy.
  Tensor readable(const Tensor& map) const {
    const bool fits = channels_last ? map.stride(1) == 1 || channels == 1 : map.stride(3) == 1 || map.size(3) == 1;
    if (fits && reinterpret_cast<uintptr_t>(map.const_data_ptr()) % map.element_size() == 0) return map;
    Tensor copy = make_map(map, batch, channels, map.size(2), map.size(3), channels_last);
    torch::stable::copy_(copy, map);
    return copy;
  }
};

// The maps are the gradients to be written, made here.
inline PyramidArguments check_integrate_backward(const Tensor& grad, const std::vector<int64_t>& heights,
                                                 const std::vector<int64_t>& widths, int64_t level,
                                                 bool channels_last) {
  STD_TORCH_CHECK(heights.size() == widths.size(), "widths: expected ", heights.size(), ", got ", widths.size());
  check_dim(grad, 4, "grad");
  PyramidTensors maps;
  for (size_t l = 0; l < heights.size(); ++l) {
    PyramidArguments::check_sides(heights[l], widths[l], "heights, widths");
    maps.push_back(PyramidArguments::make_map(grad, grad.size(0), grad.size(1), heights[l], widths[l], channels_last));
  }
  return PyramidArguments::check(maps, level, channels_last, "heights");
}

template <class T, class Data>
Map<T> as_map(const Tensor& map, Data* data) {
  return {static_cast<T*>(data),
          static_cast<int32_t>(map.size(2)),
          static_cast<int32_t>(map.size(3)),
          map.stride(0),
          map.size(1) > 1 ? map.stride(1) : 1,
          map.stride(2),
          map.size(3) > 1 ? map.stride(3) : 1};
}
template <class T>
Map<const T> read_map(const Tensor& map) {
  return as_map<const T>(map, map.const_data_ptr());
}
template <class T>
Map<T> write_map(const Tensor& map) {
  return as_map<T>(map, map.mutable_data_ptr());
}
template <class T>
Pyramid<const T> read_maps(const PyramidArguments& arguments) {
  Pyramid<const T> result{{}, static_cast<int32_t>(arguments.maps.size()), static_cast<int32_t>(arguments.refine)};
  for (int l = 0; l < result.count; ++l) result.levels[l] = read_map<T>(arguments.maps[l]);
  return result;
}
template <class T>
Pyramid<T> write_maps(const PyramidTensors& maps, int64_t refine) {
  Pyramid<T> result{{}, static_cast<int32_t>(maps.size()), static_cast<int32_t>(refine)};
  for (int l = 0; l < result.count; ++l) result.levels[l] = write_map<T>(maps[l]);
  return result;
}

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<T>, Type<I>) for the types of a map and an index; the 16-bit ones have other names on each backend.
template <class Float16, class BrainFloat16, class F>
void with_types(const Tensor& map, const Tensor& index, const F& f) {
  const auto with_index = [&](auto type) {
    index.scalar_type() == ScalarType::Int ? f(type, Type<int32_t>{}) : f(type, Type<uint8_t>{});
  };
  switch (map.scalar_type()) {
    case ScalarType::Float:
      return with_index(Type<float>{});
    case ScalarType::Double:
      return with_index(Type<double>{});
    case ScalarType::Half:
      return with_index(Type<Float16>{});
    default:
      return with_index(Type<BrainFloat16>{});
  }
}

}  // namespace libra
