// The inner loops of multiscale_roi_align on the CPU: the weights of an axis, the sums over rows and over columns, and
// their transposes, over a block of channels of one box.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "multiscale_roi_align/multiscale_roi_align_cpu_kernel.h"

#define LIBRA_ROI_LOOP __attribute__((always_inline)) inline

namespace libra {

constexpr int kRoiBlock = 32;   // channels at a time: their sums stay in registers
constexpr int kRoiColumns = 8;  // columns at a time, where they are neighbours

// The feature cells that the output cells read along one axis, each with one weight.
template <class T>
struct RoiWeights {
  struct Tap {
    int cell;
    T weight;
  };
  std::vector<Tap> taps;
  std::vector<int> begin;    // [P + 1]: the taps of an output cell
  int first = 0, count = 0;  // the feature cells [first, first + count) hold all of them

  void make(const RoiAxis<T>& axis, int cells) {
    taps.clear();
    begin.assign(1, 0);
    int low = axis.size, high = -1;
    for (int cell = 0; cell < cells; ++cell) {
      const RoiPoints points = roi_points(axis, cell, T(-1), static_cast<T>(axis.size));
      for (int point = points.begin; point < points.end; ++point) {
        RoiTap<T> tap;
        if (!roi_tap(axis, cell, point, tap)) continue;
        add(tap.low, tap.low_weight);
        add(tap.high, tap.high_weight);
        low = std::min(low, tap.low), high = std::max(high, tap.high);
      }
      begin.push_back(static_cast<int>(taps.size()));
    }
    first = low, count = std::max(high - low + 1, 0);
  }

 private:
  // The cells of neighbouring points are neighbours: one that is there already is among the last two.
  void add(int cell, T weight) {
    const int size = static_cast<int>(taps.size());
    for (int i = size - 1; i >= std::max(begin.back(), size - 2); --i) {
      if (taps[i].cell != cell) continue;
      taps[i].weight += weight;
      return;
    }
    taps.push_back({cell, weight});
  }
};

template <class T>
struct RoiScratch {
  std::vector<T> sums;    // [columns, kRoiBlock]: of the rows of a map
  std::vector<T> turned;  // [kRoiBlock, columns]: the same with columns as neighbours
  std::vector<T> cells;   // [P * P, kRoiBlock]
  std::vector<T> map;     // of float, for gradients of 16 bits

  void reserve(int columns, int output_size) {
    const size_t wide = static_cast<size_t>(columns + 2 * kRoiColumns) * kRoiBlock;
    if (sums.size() < wide) sums.resize(wide), turned.resize(wide);
    cells.resize(static_cast<size_t>(output_size) * output_size * kRoiBlock);
  }
};

#if defined(__clang__)
#define LIBRA_ROI_VECTOR _Pragma("clang loop vectorize(assume_safety)")
#else
#define LIBRA_ROI_VECTOR _Pragma("GCC ivdep")
#endif

// How a sum of rows repeats: for columns one beside the other, each of `count` numbers.
struct RoiRepeat {
  int columns;
  int64_t from_stride;
  int count;
};

// to[x * kRoiBlock + k] (+)= the sum of up to four weights times from[x * from_stride + k]; what is added to, and what
// is read, does not overlap. Plain loops: vector types would be split up for the oldest processor before
// LIBRA_VECTOR_CLONES sees them.
template <bool kAdds, int kTerms, class S, class T>
LIBRA_ROI_LOOP void add_terms(T* __restrict__ to, const S* const (&from)[4], const T (&weight)[4], RoiRepeat repeat) {
  const T weight0 = weight[0], weight1 = weight[1], weight2 = weight[2], weight3 = weight[3];
  for (int x = 0; x < repeat.columns; ++x, to += kRoiBlock) {
    const int64_t at = x * repeat.from_stride;
    const S *const from0 = from[0] + at, *const from1 = from[1] + at, *const from2 = from[2] + at,
                   *const from3 = from[3] + at;
    LIBRA_ROI_VECTOR
    for (int k = 0; k < repeat.count; ++k) {
      T sum = weight0 * to_number(from0[k]);
      if (kTerms > 1) sum += weight1 * to_number(from1[k]);
      if (kTerms > 2) sum += weight2 * to_number(from2[k]);
      if (kTerms > 3) sum += weight3 * to_number(from3[k]);
      to[k] = kAdds ? to[k] + sum : sum;
    }
  }
}

template <class T>
struct RoiTaps {  // of one output cell
  const typename RoiWeights<T>::Tap* first;
  int count;

  RoiTaps(const RoiWeights<T>& weights, int cell)
      : first(weights.taps.data() + weights.begin[cell]), count(weights.begin[cell + 1] - weights.begin[cell]) {}
};

// The sum over taps of weight * from[(cell - origin) * stride + ...], repeated.
template <class S, class T>
LIBRA_ROI_LOOP void sum_taps(T* to, RoiTaps<T> taps, const S* from, int origin, int64_t stride, RoiRepeat repeat) {
  for (int x = 0; taps.count == 0 && x < repeat.columns; ++x) std::fill_n(to + x * kRoiBlock, repeat.count, T(0));
  for (int done = 0; done < taps.count; done += 4) {
    const int terms = std::min(taps.count - done, 4);
    const S* places[4];
    T weights[4];
    for (int i = 0; i < 4; ++i) {
      const auto& tap = taps.first[done + std::min(i, terms - 1)];
      places[i] = from + (tap.cell - origin) * stride, weights[i] = tap.weight;
    }
    if (done) {
      terms == 1   ? add_terms<true, 1>(to, places, weights, repeat)
      : terms == 2 ? add_terms<true, 2>(to, places, weights, repeat)
      : terms == 3 ? add_terms<true, 3>(to, places, weights, repeat)
                   : add_terms<true, 4>(to, places, weights, repeat);
    } else {
      terms == 1   ? add_terms<false, 1>(to, places, weights, repeat)
      : terms == 2 ? add_terms<false, 2>(to, places, weights, repeat)
      : terms == 3 ? add_terms<false, 3>(to, places, weights, repeat)
                   : add_terms<false, 4>(to, places, weights, repeat);
    }
  }
}

// to[k] += weight * from[k].
template <class T>
LIBRA_ROI_LOOP void add_scaled(T* __restrict__ to, T weight, const T* from, int count) {
  LIBRA_ROI_VECTOR
  for (int k = 0; k < count; ++k) to[k] += weight * from[k];
}

#if defined(__clang__)
#define LIBRA_ROI_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LIBRA_ROI_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#endif

// to[j * to_stride + i] = from[i * from_stride + j], four by four. kBeyond: `from` and `to` have room for a multiple of
// four columns, the last of them of no interest.
template <bool kBeyond, class T>
LIBRA_ROI_LOOP void transpose(const T* from, int64_t from_stride, T* to, int64_t to_stride, int rows, int columns) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  typedef typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type Integer;
  typedef Integer Order __attribute__((vector_size(4 * sizeof(T)), unused));
  const int whole_rows = rows / 4 * 4, whole_columns = kBeyond ? columns : columns / 4 * 4;
  for (int i = 0; i < whole_rows; i += 4) {
    for (int j = 0; j < whole_columns; j += 4) {
      Four in[4], out[4];
      for (int k = 0; k < 4; ++k) memcpy(&in[k], from + (i + k) * from_stride + j, sizeof(Four));
      const Four low = LIBRA_ROI_SHUFFLE(in[0], in[1], 0, 4, 1, 5), low2 = LIBRA_ROI_SHUFFLE(in[2], in[3], 0, 4, 1, 5);
      const Four high = LIBRA_ROI_SHUFFLE(in[0], in[1], 2, 6, 3, 7),
                 high2 = LIBRA_ROI_SHUFFLE(in[2], in[3], 2, 6, 3, 7);
      out[0] = LIBRA_ROI_SHUFFLE(low, low2, 0, 1, 4, 5), out[1] = LIBRA_ROI_SHUFFLE(low, low2, 2, 3, 6, 7);
      out[2] = LIBRA_ROI_SHUFFLE(high, high2, 0, 1, 4, 5), out[3] = LIBRA_ROI_SHUFFLE(high, high2, 2, 3, 6, 7);
      for (int k = 0; k < 4; ++k) memcpy(to + (j + k) * to_stride + i, &out[k], sizeof(Four));
    }
    for (int j = whole_columns; j < columns; ++j) {
      for (int k = i; k < i + 4; ++k) to[j * to_stride + k] = from[k * from_stride + j];
    }
  }
  for (int i = whole_rows; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) to[j * to_stride + i] = from[i * from_stride + j];
  }
}

template <class T>
LIBRA_ROI_LOOP void transpose_out(const T* cells, int count, int channels, T* pooled) {
  transpose<false>(cells, kRoiBlock, pooled, count, count, channels);
}

template <class S, class T>
LIBRA_ROI_LOOP void transpose_out(const T* cells, int count, int channels, S* pooled) {
  for (int c = 0; c < channels; ++c) {
    for (int cell = 0; cell < count; ++cell) from_number(cells[cell * kRoiBlock + c], pooled[c * count + cell]);
  }
}

// What the channels lack to a block is 0.
template <class S, class T>
LIBRA_ROI_LOOP void transpose_in(const S* gradient, int count, int channels, T* cells) {
  if (channels < kRoiBlock) std::fill_n(cells, count * kRoiBlock, T(0));
  if constexpr (sizeof(S) == sizeof(T)) {
    transpose<false>(gradient, count, cells, kRoiBlock, channels, count);
  } else {
    for (int c = 0; c < channels; ++c) {
      for (int cell = 0; cell < count; ++cell) cells[cell * kRoiBlock + c] = to_number(gradient[c * count + cell]);
    }
  }
}

// The columns of the map that a sum over rows covers where columns are neighbours: those of the box, and where the map
// has room as many more as make their number a multiple of kRoiColumns.
struct RoiWindow {
  int first, count;

  RoiWindow(int box_first, int box_count, int width) {
    const int wide = (box_count + kRoiColumns - 1) / kRoiColumns * kRoiColumns;
    count = wide <= width ? wide : box_count;
    first = std::min(box_first, width - count);
  }
};

// scratch.sums [columns, kRoiBlock] = the sum of the map's rows that output row `row` reads.
template <class S, class T>
LIBRA_ROI_LOOP void sum_rows(const RoiMap<const S>& map, const RoiWeights<T>& rows, int row,
                             const RoiWeights<T>& columns, int channels, RoiScratch<T>& scratch) {
  const RoiTaps<T> taps(rows, row);
  T* sums = scratch.sums.data();
  if (map.channels_last()) {
    const S* first = map.data + columns.first * map.column_stride;
    if (channels == kRoiBlock) {
      sum_taps(sums, taps, first, 0, map.row_stride, {columns.count, map.column_stride, kRoiBlock});
    } else {
      std::fill_n(sums, columns.count * kRoiBlock, T(0));
      sum_taps(sums, taps, first, 0, map.row_stride, {columns.count, map.column_stride, channels});
    }
    return;
  }
  const RoiWindow window(columns.first, columns.count, map.width);
  T* turned = scratch.turned.data();
  for (int c = 0; c < channels; ++c) {
    const S* channel = map.data + c * map.channel_stride + window.first;
    sum_taps(turned + c * window.count, taps, channel, 0, map.row_stride, {1, 0, window.count});
  }
  transpose<true>(turned + columns.first - window.first, window.count, sums, kRoiBlock, channels, columns.count);
}

// cells [P, kRoiBlock] of one row of the output.
template <class T>
LIBRA_ROI_LOOP void sum_columns(const RoiWeights<T>& columns, int count, const T* sums, T* cells) {
  for (int cell = 0; cell < count; ++cell) {
    sum_taps(cells + cell * kRoiBlock, RoiTaps<T>(columns, cell), sums, columns.first, kRoiBlock, {1, 0, kRoiBlock});
  }
}

// The transpose of sum_columns.
template <class T>
LIBRA_ROI_LOOP void spread_columns(const RoiWeights<T>& columns, int count, const T* cells, T* sums) {
  std::fill_n(sums, columns.count * kRoiBlock, T(0));
  for (int cell = 0; cell < count; ++cell) {
    const RoiTaps<T> taps(columns, cell);
    for (int i = 0; i < taps.count; ++i) {
      add_scaled(sums + (taps.first[i].cell - columns.first) * kRoiBlock, taps.first[i].weight,
                 cells + cell * kRoiBlock, kRoiBlock);
    }
  }
}

// The transpose of sum_rows: adds what lies in scratch.sums to the map.
template <class T>
LIBRA_ROI_LOOP void spread_rows(RoiScratch<T>& scratch, const RoiWeights<T>& rows, int row,
                                const RoiWeights<T>& columns, int channels, const RoiMap<T>& map) {
  const RoiTaps<T> taps(rows, row);
  const T* sums = scratch.sums.data();
  if (map.channels_last()) {
    for (int i = 0; i < taps.count; ++i) {
      const T weight = taps.first[i].weight;
      T* to = map.data + taps.first[i].cell * map.row_stride + columns.first * map.column_stride;
      for (int x = 0; x < columns.count; ++x, to += map.column_stride) {
        if (channels == kRoiBlock) {
          add_scaled(to, weight, sums + x * kRoiBlock, kRoiBlock);
        } else {
          add_scaled(to, weight, sums + x * kRoiBlock, channels);
        }
      }
    }
    return;
  }
  // The window's columns beside those of the box were 0 from the beginning, and stay so.
  const RoiWindow window(columns.first, columns.count, map.width);
  T* turned = scratch.turned.data();
  transpose<false>(sums, kRoiBlock, turned + columns.first - window.first, window.count, columns.count, channels);
  for (int c = 0; c < channels; ++c) {
    T* channel = map.data + c * map.channel_stride + window.first;
    for (int i = 0; i < taps.count; ++i) {
      add_scaled(channel + taps.first[i].cell * map.row_stride, taps.first[i].weight, turned + c * window.count,
                 window.count);
    }
  }
}

}  // namespace libra
