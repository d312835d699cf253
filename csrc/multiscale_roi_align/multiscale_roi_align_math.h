// Which level a box is pooled from, and where the sampling points of one axis of one box lie: RoIAlign (He et al. 2017)
// with the half-cell correction, on the level of Lin et al. 2017, equation 1.
//
// RoIAlign is separable. A point of a cell of the output is a weighted sum of two feature cells along each axis, and
// a point outside the map counts nothing; so an output cell is sum over y of Wy[y] sum over x of Wx[x] F[y][x], with
// the weights of an axis those of its points over their number. T is float, or double for features of that type.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/cuda_compat.cuh"

namespace libra {

constexpr int kRoiLevels = 8;           // at most
constexpr int kRoiMostCells = 1 << 20;  // coordinates in feature cells are clamped to it: far outside of every map

// How boxes are pooled, of all levels.
struct RoiRules {
  double scale[kRoiLevels];  // feature cells per pixel
  int levels;
  int output_size;     // P, cells along a side of the output
  int sampling_ratio;  // points per cell and axis; 0: about one per feature cell
  double finest_scale;
};

// The maps [B, C, H, W] of a level as they lie, strides in elements: the columns or the channels are neighbours.
template <class S>
struct RoiMap {
  S* data;
  int height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;

  bool channels_last() const { return column_stride != 1; }
};

template <class S>
struct RoiMaps {
  RoiMap<S> level[kRoiLevels];
};

// Computed with: float, or double for features of double.
template <class S>
struct RoiNumber {
  using type = float;
};
template <>
struct RoiNumber<double> {
  using type = double;
};

template <class T>
struct RoiBox {
  T x1, y1, x2, y2;
};

// A box that is not finite is a point at the origin.
template <class T>
LIBRA_HOST_DEVICE RoiBox<T> finite_roi(const T* box) {
  const T sum = box[0] * T(0) + box[1] * T(0) + box[2] * T(0) + box[3] * T(0);  // NaN unless all are finite
  return sum == T(0) ? RoiBox<T>{box[0], box[1], box[2], box[3]} : RoiBox<T>{T(0), T(0), T(0), T(0)};
}

// floor(log2(sqrt(area) / finest_scale + 1e-6)), within the levels.
template <class T>
LIBRA_HOST_DEVICE int roi_level(const RoiBox<T>& box, const RoiRules& rules) {
  const T width = box.x2 - box.x1, height = box.y2 - box.y1;
  const T area = (width > T(0) ? width : T(0)) * (height > T(0) ? height : T(0));
  const T scale = std::sqrt(area) / static_cast<T>(rules.finest_scale) + static_cast<T>(1e-6);
  int level = 0;
  for (T next = T(2); level + 1 < rules.levels && scale >= next; next *= T(2)) ++level;
  return level;
}

// The points of one axis of a box, in feature cells.
template <class T>
struct RoiAxis {
  T start, bin;  // the box's low end, and an output cell's length
  int points;    // per output cell
  int size;      // of the map
};

template <class T>
LIBRA_HOST_DEVICE RoiAxis<T> roi_axis(T low, T high, T scale, int size, int cells, int sampling_ratio) {
  const T most = static_cast<T>(kRoiMostCells);
  T start = low * scale - T(0.5), end = high * scale - T(0.5);
  start = start < -most ? -most : start > most ? most : start;
  end = end < -most ? -most : end > most ? most : end;
  const T extent = end - start;
  RoiAxis<T> axis{start, extent / static_cast<T>(cells), sampling_ratio, size};
  if (sampling_ratio <= 0)
    axis.points = extent > T(0) ? static_cast<int>(std::ceil(extent / static_cast<T>(cells))) : 0;
  return axis;
}

// A point: its two cells and their weights.
template <class T>
struct RoiTap {
  int low, high;
  T low_weight, high_weight;
};

// Of point `point` of output cell `cell`; false where it lies outside of the map by more than a cell.
template <class T>
LIBRA_HOST_DEVICE bool roi_tap(const RoiAxis<T>& axis, int cell, int point, RoiTap<T>& tap) {
  T position = axis.start + static_cast<T>(cell) * axis.bin +
               (static_cast<T>(point) + T(0.5)) * axis.bin / static_cast<T>(axis.points);
  if (!(position >= T(-1) && position <= static_cast<T>(axis.size))) return false;
  if (position < T(0)) position = T(0);
  tap.low = static_cast<int>(position);
  if (tap.low >= axis.size - 1) {
    tap.low = tap.high = axis.size - 1;
    position = static_cast<T>(tap.low);
  } else {
    tap.high = tap.low + 1;
  }
  const T fraction = position - static_cast<T>(tap.low);
  tap.high_weight = fraction / static_cast<T>(axis.points);
  tap.low_weight = (T(1) - fraction) / static_cast<T>(axis.points);
  return true;
}

// The points [begin, end) of an output cell that may lie in the places (low, high), with some to spare; all of them
// where they are few.
struct RoiPoints {
  int begin, end;
};

template <class T>
LIBRA_HOST_DEVICE RoiPoints roi_points(const RoiAxis<T>& axis, int cell, T low, T high) {
  constexpr int kFew = 4;
  if (axis.points <= kFew || !(axis.bin > T(0))) return {0, axis.points};
  const T first = axis.start + static_cast<T>(cell) * axis.bin, per_cell = static_cast<T>(axis.points) / axis.bin;
  const T begin = (low - first) * per_cell - T(2), end = (high - first) * per_cell + T(2);
  const T points = static_cast<T>(axis.points);
  return {begin > T(0) ? static_cast<int>(begin < points ? begin : points) : 0,
          end < points ? static_cast<int>(end > T(0) ? end : T(0)) : axis.points};
}

}  // namespace libra
