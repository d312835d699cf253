// The balanced pyramid on the CPU for maps whose channels are neighbours in memory: every cell is a vector of channels.
//
// Work is shared out by cells or rows of what is written, each of which gathers what it needs: no two threads write to
// the same place, and no number of threads changes a sum.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/vector_clones.h"
#include "pyramid/pyramid_cpu_kernel.h"

namespace libra {
namespace {

constexpr int kChunk = 64;              // channels at a time, whose sums and maxima stay in L1
constexpr int64_t kThreadWork = 16384;  // elements that are worth waking a thread for

template <class T>
using Number = decltype(to_number(T{}));

// As wide as a Number, so that both go through the same vector code.
template <class T>
using Offset = std::conditional_t<sizeof(Number<T>) == 8, int64_t, int32_t>;

#define LIBRA_BODY inline __attribute__((always_inline))

template <class T>
struct Chunk {
  Number<T> sum[kChunk], largest[kChunk];
  Offset<T> where[kChunk];
};

// Calls f(first channel, how many), the number a constant for all but the last.
template <class F>
LIBRA_BODY void for_each_chunk(int64_t channels, const F& f) {
  int64_t c = 0;
  for (; c + kChunk <= channels; c += kChunk) f(c, std::integral_constant<int, kChunk>{});
  if (c < channels) f(c, static_cast<int>(channels - c));
}

// The largest of a window for n channels, and where it lies.
template <class T, class N>
LIBRA_BODY void largest_of_window(const Map<const T>& map, int64_t b, int64_t c, Span rows, Span columns, N n,
                                  Chunk<T>& chunk) {
  for (int k = 0; k < n; ++k) chunk.largest[k] = -static_cast<Number<T>>(__builtin_inf()), chunk.where[k] = 0;
  Offset<T> offset = 0;
  for (int32_t y = rows.first; y < rows.last; ++y) {
    for (int32_t x = columns.first; x < columns.last; ++x, ++offset) {
      const T* values = map.at(b, 0, y, x) + c;
      for (int k = 0; k < n; ++k) {
        const Number<T> value = to_number(values[k]);
        const bool take = is_larger(value, chunk.largest[k]);
        chunk.largest[k] = take ? value : chunk.largest[k];
        chunk.where[k] = take ? offset : chunk.where[k];
      }
    }
  }
}

template <class T, class N>
LIBRA_BODY void add(Number<T>* sum, const T* values, N n) {
  for (int k = 0; k < n; ++k) sum[k] += to_number(values[k]);
}

template <class T, class N>
LIBRA_BODY void store(T* to, const Number<T>* values, N n) {
  for (int k = 0; k < n; ++k) from_number(values[k], to[k]);
}

template <class I, class W, class N>
LIBRA_BODY void store_index(I* to, const W* where, N n) {
  for (int k = 0; k < n; ++k) to[k] = static_cast<I>(where[k]);
}

// One row of the mean map.
template <class T, class I>
LIBRA_VECTOR_CLONES void integrate_row(const Pyramid<const T>& levels, const PyramidSizes& sizes, const Map<T>& mean,
                                       I* index, int64_t b, int32_t i) {
  const int64_t map_size = sizes.batch * sizes.channels * sizes.height * sizes.width;
  const auto divisor = static_cast<Number<T>>(levels.count);
  for (int32_t j = 0; j < sizes.width; ++j) {
    const int64_t cell = ((b * sizes.height + i) * sizes.width + j) * sizes.channels;
    for_each_chunk(sizes.channels, [&](int64_t c, auto n) __attribute__((always_inline)) {
      Chunk<T> chunk;
      for (int k = 0; k < n; ++k) chunk.sum[k] = 0;
      for (int l = 0; l < levels.count; ++l) {
        const Map<const T>& map = levels.levels[l];
        if (l < levels.refine) {
          largest_of_window(map, b, c, span(i, sizes.height, map.height), span(j, sizes.width, map.width), n, chunk);
          for (int k = 0; k < n; ++k) chunk.sum[k] += chunk.largest[k];
          if (index) store_index(index + l * map_size + cell + c, chunk.where, n);
        } else {
          const int32_t y = nearest(i, nearest_scale(sizes.height, map.height), map.height);
          const int32_t x = nearest(j, nearest_scale(sizes.width, map.width), map.width);
          add(chunk.sum, map.at(b, 0, y, x) + c, n);
        }
      }
      for (int k = 0; k < n; ++k) chunk.sum[k] /= divisor;
      store(mean.at(b, 0, i, j) + c, chunk.sum, n);
    });
  }
}

// Cells [begin, end) of one level's gradient in image b. `scaled`: what each level gets of a cell of the mean map,
// dense.
template <class T, class I>
LIBRA_VECTOR_CLONES void integrate_backward_cells(const Number<T>* scaled, const PyramidSizes& sizes, const I* index,
                                                  const Map<T>& map, bool finer, int64_t b, int64_t begin,
                                                  int64_t end) {
  const float scale_y = nearest_scale(sizes.height, map.height), scale_x = nearest_scale(sizes.width, map.width);
  for (int64_t cell = begin; cell < end; ++cell) {
    const int32_t y = static_cast<int32_t>(cell / map.width), x = static_cast<int32_t>(cell % map.width);
    const Span rows = finer ? span(y, map.height, sizes.height) : nearest_span(y, sizes.height, map.height, scale_y);
    const Span columns = finer ? span(x, map.width, sizes.width) : nearest_span(x, sizes.width, map.width, scale_x);
    for_each_chunk(sizes.channels, [&](int64_t c, auto n) __attribute__((always_inline)) {
      Number<T> sum[kChunk];
      for (int k = 0; k < n; ++k) sum[k] = 0;
      for (int32_t i = rows.first; i < rows.last; ++i) {
        const Span window_rows = span(i, sizes.height, map.height);
        for (int32_t j = columns.first; j < columns.last; ++j) {
          const int64_t at = ((b * sizes.height + i) * sizes.width + j) * sizes.channels + c;
          if (finer) {
            const Span window = span(j, sizes.width, map.width);
            const auto offset =
                static_cast<Offset<T>>((y - window_rows.first) * (window.last - window.first) + (x - window.first));
            for (int k = 0; k < n; ++k)
              sum[k] += static_cast<Offset<T>>(index[at + k]) == offset ? scaled[at + k] : Number<T>(0);
          } else {
            for (int k = 0; k < n; ++k) sum[k] += scaled[at + k];
          }
        }
      }
      store(map.at(b, 0, y, x) + c, sum, n);
    });
  }
}

template <class T>
LIBRA_VECTOR_CLONES void scale_cells(const Map<const T>& gradient, const PyramidSizes& sizes, int count, int64_t b,
                                     int32_t i, Number<T>* scaled) {
  const auto divisor = static_cast<Number<T>>(count);
  for (int32_t j = 0; j < sizes.width; ++j) {
    const T* values = gradient.at(b, 0, i, j);
    for (int64_t c = 0; c < sizes.channels; ++c) scaled[j * sizes.channels + c] = to_number(values[c]) / divisor;
  }
}

// Cells [begin, end) of one level's output in image b; index: of this level.
template <class T, class I>
LIBRA_VECTOR_CLONES void scatter_cells(const Map<const T>& map, const Map<const T>& refined, const PyramidSizes& sizes,
                                       const Map<T>& output, I* index, bool coarser, int64_t b, int64_t begin,
                                       int64_t end) {
  const float scale_y = nearest_scale(map.height, sizes.height), scale_x = nearest_scale(map.width, sizes.width);
  for (int64_t cell = begin; cell < end; ++cell) {
    const int32_t y = static_cast<int32_t>(cell / map.width), x = static_cast<int32_t>(cell % map.width);
    const T* own = map.at(b, 0, y, x);
    T* to = output.at(b, 0, y, x);
    if (!coarser) {
      const T* other = refined.at(b, 0, nearest(y, scale_y, sizes.height), nearest(x, scale_x, sizes.width));
      for (int64_t c = 0; c < sizes.channels; ++c) from_number(to_number(own[c]) + to_number(other[c]), to[c]);
      continue;
    }
    const Span rows = span(y, map.height, sizes.height), columns = span(x, map.width, sizes.width);
    for_each_chunk(sizes.channels, [&](int64_t c, auto n) __attribute__((always_inline)) {
      Chunk<T> chunk;
      largest_of_window(refined, b, c, rows, columns, n, chunk);
      add(chunk.largest, own + c, n);
      store(to + c, chunk.largest, n);
      const int64_t at = (b * map.height * map.width + cell) * sizes.channels + c;
      if (index) store_index(index + at, chunk.where, n);
    });
  }
}

// One row of the refined map's gradient.
template <class T, class I>
LIBRA_VECTOR_CLONES void scatter_backward_row(const Pyramid<const T>& gradients, const PyramidSizes& sizes,
                                              const I* index, const Map<T>& result, int64_t b, int32_t i) {
  for (int32_t j = 0; j < sizes.width; ++j) {
    for_each_chunk(sizes.channels, [&](int64_t c, auto n) __attribute__((always_inline)) {
      Number<T> sum[kChunk];
      for (int k = 0; k < n; ++k) sum[k] = 0;
      const I* own_index = index;
      for (int l = 0; l < gradients.count; ++l) {
        const Map<const T>& map = gradients.levels[l];
        const bool coarser = l > gradients.refine;
        const Span rows = coarser ? span(i, sizes.height, map.height)
                                  : nearest_span(i, map.height, sizes.height, nearest_scale(map.height, sizes.height));
        const Span columns = coarser ? span(j, sizes.width, map.width)
                                     : nearest_span(j, map.width, sizes.width, nearest_scale(map.width, sizes.width));
        for (int32_t y = rows.first; y < rows.last; ++y) {
          const Span window_rows = span(y, map.height, sizes.height);
          for (int32_t x = columns.first; x < columns.last; ++x) {
            const T* values = map.at(b, 0, y, x) + c;
            if (coarser) {
              const Span window = span(x, map.width, sizes.width);
              const auto offset =
                  static_cast<Offset<T>>((i - window_rows.first) * (window.last - window.first) + (j - window.first));
              const I* where = own_index + ((b * map.height + y) * map.width + x) * sizes.channels + c;
              for (int k = 0; k < n; ++k)
                sum[k] += static_cast<Offset<T>>(where[k]) == offset ? to_number(values[k]) : Number<T>(0);
            } else {
              add(sum, values, n);
            }
          }
        }
        if (coarser) own_index += sizes.batch * sizes.channels * map.height * map.width;
      }
      store(result.at(b, 0, i, j) + c, sum, n);
    });
  }
}

int64_t grain(int64_t elements) { return std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, elements)); }

// Shares out the cells of all levels: f(level, image, first cell, last cell).
template <class T, class F>
void for_each_cells(const Pyramid<T>& levels, const PyramidSizes& sizes, ParallelFor threads, const F& f) {
  int64_t ends[kMostLevels], total = 0;
  for (int l = 0; l < levels.count; ++l) {
    total += sizes.batch * levels.levels[l].height * levels.levels[l].width;
    ends[l] = total;
  }
  parallel_for(threads, total, grain(sizes.channels), [&](int64_t begin, int64_t end) {
    for (int l = 0; l < levels.count && begin < end; ++l) {
      const int64_t image = static_cast<int64_t>(levels.levels[l].height) * levels.levels[l].width;
      const int64_t start = ends[l] - sizes.batch * image;
      while (begin < std::min(end, ends[l])) {
        const int64_t b = (begin - start) / image, first = (begin - start) % image;
        const int64_t last = std::min(image, first + std::min(end, ends[l]) - begin);
        f(l, b, first, last);
        begin += last - first;
      }
    }
  });
}

template <class F>
void for_each_row(const PyramidSizes& sizes, int64_t elements_of_row, ParallelFor threads, const F& f) {
  parallel_for(threads, sizes.batch * sizes.height, grain(elements_of_row), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(row / sizes.height, static_cast<int32_t>(row % sizes.height));
  });
}

// Elements of all levels for each row of the refine level.
template <class T>
int64_t elements_of_row(const Pyramid<T>& levels, const PyramidSizes& sizes) {
  int64_t cells = 0;
  for (int l = 0; l < levels.count; ++l)
    cells += static_cast<int64_t>(levels.levels[l].height) * levels.levels[l].width;
  return cells * sizes.channels / std::max(1, sizes.height);
}

}  // namespace

template <class T, class I>
void ChannelsLast<T, I>::integrate(const Pyramid<const T>& levels, const PyramidSizes& sizes, const Map<T>& mean,
                                   I* index, ParallelFor threads) {
  for_each_row(sizes, elements_of_row(levels, sizes), threads,
               [&](int64_t b, int32_t i) { integrate_row(levels, sizes, mean, index, b, i); });
}

template <class T, class I>
void ChannelsLast<T, I>::integrate_backward(const Map<const T>& gradient, const PyramidSizes& sizes, const I* index,
                                            const Pyramid<T>& levels, ParallelFor threads) {
  const int64_t row = sizes.width * sizes.channels, map_size = sizes.batch * sizes.height * row;
  std::vector<Number<T>> scaled(map_size);
  for_each_row(sizes, row, threads, [&](int64_t b, int32_t i) {
    scale_cells(gradient, sizes, levels.count, b, i, scaled.data() + (b * sizes.height + i) * row);
  });
  for_each_cells(levels, sizes, threads, [&](int l, int64_t b, int64_t begin, int64_t end) {
    integrate_backward_cells<T>(scaled.data(), sizes, index + l * map_size, levels.levels[l], l < levels.refine, b,
                                begin, end);
  });
}

template <class T, class I>
void ChannelsLast<T, I>::scatter(const Pyramid<const T>& levels, const Map<const T>& refined, const PyramidSizes& sizes,
                                 const Pyramid<T>& outputs, I* index, ParallelFor threads) {
  I* indices[kMostLevels] = {};
  for (int l = levels.refine + 1; index && l < levels.count; ++l) {
    indices[l] = index;
    index += sizes.batch * sizes.channels * levels.levels[l].height * levels.levels[l].width;
  }
  for_each_cells(levels, sizes, threads, [&](int l, int64_t b, int64_t begin, int64_t end) {
    scatter_cells(levels.levels[l], refined, sizes, outputs.levels[l], indices[l], l > levels.refine, b, begin, end);
  });
}

template <class T, class I>
void ChannelsLast<T, I>::scatter_backward(const Pyramid<const T>& gradients, const PyramidSizes& sizes, const I* index,
                                          const Map<T>& result, ParallelFor threads) {
  for_each_row(sizes, elements_of_row(gradients, sizes), threads,
               [&](int64_t b, int32_t i) { scatter_backward_row(gradients, sizes, index, result, b, i); });
}

template struct ChannelsLast<float, uint8_t>;
template struct ChannelsLast<float, int32_t>;
template struct ChannelsLast<double, uint8_t>;
template struct ChannelsLast<double, int32_t>;
template struct ChannelsLast<Half, uint8_t>;
template struct ChannelsLast<Half, int32_t>;
template struct ChannelsLast<BFloat16, uint8_t>;
template struct ChannelsLast<BFloat16, int32_t>;

}  // namespace libra
