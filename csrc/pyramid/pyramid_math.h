// Where the cells of a map lie in a map of another size: windows of adaptive max pooling and nearest neighbours, as
// PyTorch places them. And how a list of maps is handed to a kernel.
#pragma once

#include <cstdint>

#include "common/cuda_compat.cuh"

namespace libra {

constexpr int kMostLevels = 8;
constexpr int64_t kLongestSide = 65535;  // of a map, in cells: products of two sides stay in 32 bits

// Cells [first, last) of one dimension.
struct Span {
  int32_t first, last;
};

// Window i of the n that cover N cells evenly: floor(i N / n) .. ceil((i + 1) N / n). Neighbours may share a cell. By
// the same formula the windows that hold cell y of N are span(y, N, n).
LIBRA_HOST_DEVICE Span span(uint32_t i, uint32_t n, uint32_t N) {
  return {static_cast<int32_t>(i * N / n), static_cast<int32_t>(((i + 1) * N + n - 1) / n)};
}

// Of N cells the nearest to cell i of n, in PyTorch's float32; `scale` is nearest_scale(n, N).
LIBRA_HOST_DEVICE float nearest_scale(int32_t n, int32_t N) { return static_cast<float>(N) / static_cast<float>(n); }
LIBRA_HOST_DEVICE int32_t nearest(int32_t i, float scale, int32_t N) {
  const int32_t cell = static_cast<int32_t>(static_cast<float>(i) * scale);
  return cell < N - 1 ? cell : N - 1;
}

// The first of n cells whose nearest of N is y or beyond; n if there is none. Cells [first(y), first(y + 1)) have y.
LIBRA_HOST_DEVICE int32_t first_with_nearest(int32_t y, int32_t n, int32_t N, float scale) {
  const auto length = static_cast<uint32_t>(N);
  auto i = static_cast<int32_t>((static_cast<uint32_t>(y) * static_cast<uint32_t>(n) + length - 1) / length);  // nearly
  if (i > n) i = n;
  while (i > 0 && nearest(i - 1, scale, N) >= y) --i;
  while (i < n && nearest(i, scale, N) < y) ++i;
  return i;
}
LIBRA_HOST_DEVICE Span nearest_span(int32_t y, int32_t n, int32_t N, float scale) {
  return {first_with_nearest(y, n, N, scale), first_with_nearest(y + 1, n, N, scale)};
}

// PyTorch's rule: the first of equal values is the largest of a window, but the last NaN.
template <class T>
LIBRA_HOST_DEVICE bool is_larger(T value, T largest) {
  return (value > largest) | (value != value);
}

// One map [B, C, H, W]. Strides in elements.
template <class T>
struct Map {
  T* data;
  int32_t height, width;
  int64_t image, channel, row, column;  // strides

  LIBRA_HOST_DEVICE T* at(int64_t b, int64_t c, int64_t y, int64_t x) const {
    return data + b * image + c * channel + y * row + x * column;
  }
};

// Maps of the same batch and channels, finest first; `refine` is the level at whose size they are averaged.
template <class T>
struct Pyramid {
  Map<T> levels[kMostLevels];
  int32_t count, refine;
};

// Sizes that a kernel needs beside its maps.
struct PyramidSizes {
  int64_t batch, channels;
  int32_t height, width;  // of the refine level
};

// Cells of the largest of n windows over N.
LIBRA_HOST_DEVICE int64_t widest_window(int64_t n, int64_t N) { return N % n == 0 ? N / n : N / n + 2; }

}  // namespace libra
