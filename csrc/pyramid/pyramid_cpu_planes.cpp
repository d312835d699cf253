// The balanced pyramid on the CPU for maps whose columns are neighbours in memory: a plane [H, W] of one image and
// channel at a time, by one thread. The largest of a window is taken over its rows first, which is vector code over
// all columns of the map, and then over its columns; a sum over a rectangle likewise.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/vector_clones.h"
#include "pyramid/pyramid_cpu_kernel.h"

namespace libra {
namespace {

constexpr int64_t kThreadWork = 16384;  // elements that are worth waking a thread for

template <class T>
using Number = decltype(to_number(T{}));

// As wide as a Number, so that both go through the same vector code.
template <class T>
using Offset = std::conditional_t<sizeof(Number<T>) == 8, int64_t, int32_t>;

#define LIBRA_BODY inline __attribute__((always_inline))

// What relates one dimension of a level to that of the refine level, worked out once for all planes.
struct Axis {
  std::vector<Span> windows;     // of the larger map's cells, for each cell of the smaller
  std::vector<int32_t> nearest;  // of the smaller map's cells, for each cell of the larger

  Axis(int32_t small, int32_t large, bool pooled) {
    if (pooled) {
      for (int32_t i = 0; i < small; ++i) windows.push_back(span(i, small, large));
      return;
    }
    for (int32_t i = 0; i < large; ++i) nearest.push_back(libra::nearest(i, nearest_scale(large, small), small));
    const float scale = nearest_scale(large, small);
    for (int32_t i = 0; i < small; ++i) windows.push_back(nearest_span(i, large, small, scale));
  }
};
struct Axes {
  Axis rows, columns;
};

// Per level: how its plane and the refine level's are related. finer_pooled: to the refine level (integrate), where
// finer levels are pooled and coarser ones repeated; else from it (scatter), where it is the other way round.
template <class T>
std::vector<Axes> make_axes(const Pyramid<T>& levels, const PyramidSizes& sizes, bool integrate) {
  std::vector<Axes> axes;
  for (int l = 0; l < levels.count; ++l) {
    const Map<T>& map = levels.levels[l];
    if (integrate) {
      const bool pooled = l < levels.refine;
      axes.push_back(pooled ? Axes{{sizes.height, map.height, true}, {sizes.width, map.width, true}}
                            : Axes{{map.height, sizes.height, false}, {map.width, sizes.width, false}});
    } else {
      const bool pooled = l > levels.refine;
      axes.push_back(pooled ? Axes{{map.height, sizes.height, true}, {map.width, sizes.width, true}}
                            : Axes{{sizes.height, map.height, false}, {sizes.width, map.width, false}});
    }
  }
  return axes;
}

// A thread's own rows and planes.
template <class T>
struct Scratch {
  std::vector<Number<T>> row, plane;
  std::vector<Offset<T>> where;
};

// The first of `count` windows, each with its largest value, and where it lies. values: a plane's rows.
template <class T, class I>
LIBRA_VECTOR_CLONES void largest_of_row(const T* values, int64_t stride, int32_t width, Span rows,
                                        const std::vector<Span>& columns, Scratch<T>& scratch, Number<T>* largest,
                                        I* index) {
  Number<T>* __restrict__ best = scratch.row.data();
  Offset<T>* __restrict__ where = scratch.where.data();
  for (int32_t x = 0; x < width; ++x) best[x] = -static_cast<Number<T>>(__builtin_inf()), where[x] = 0;
  for (int32_t y = rows.first; y < rows.last; ++y) {
    const T* row = values + y * stride;
    const Offset<T> below = y - rows.first;
    for (int32_t x = 0; x < width; ++x) {
      const Number<T> value = to_number(row[x]);
      const bool take = is_larger(value, best[x]);
      best[x] = take ? value : best[x];
      where[x] = take ? below : where[x];
    }
  }
  for (size_t j = 0; j < columns.size(); ++j) {
    Number<T> value = best[columns[j].first];
    int32_t x = columns[j].first;
    for (int32_t next = x + 1; next < columns[j].last; ++next) {
      // Of equal values the first by rows, of NaNs the last.
      const bool both_nan = best[next] != best[next] && value != value;
      const bool take = (best[next] != best[next] && value == value) || best[next] > value ||
                        (best[next] == value && where[next] < where[x]) || (both_nan && where[next] >= where[x]);
      value = take ? best[next] : value;
      x = take ? next : x;
    }
    largest[j] = value;
    if (index) index[j] = static_cast<I>(where[x] * (columns[j].last - columns[j].first) + x - columns[j].first);
  }
}

template <class T, class I>
LIBRA_VECTOR_CLONES void integrate_plane(const Pyramid<const T>& levels, const PyramidSizes& sizes,
                                         const std::vector<Axes>& axes, const Map<T>& mean, I* index, int64_t b,
                                         int64_t c, Scratch<T>& scratch) {
  const int64_t plane_size = static_cast<int64_t>(sizes.height) * sizes.width;
  const int64_t map_size = sizes.batch * sizes.channels * plane_size;
  const auto divisor = static_cast<Number<T>>(levels.count);
  Number<T>* sum = scratch.plane.data();
  Number<T>* largest = sum + sizes.width;
  for (int32_t i = 0; i < sizes.height; ++i) {
    std::fill(sum, sum + sizes.width, Number<T>(0));
    for (int l = 0; l < levels.count; ++l) {
      const Map<const T>& map = levels.levels[l];
      if (l < levels.refine) {
        I* to =
            index ? index + l * map_size + (b * sizes.channels + c) * plane_size + static_cast<int64_t>(i) * sizes.width
                  : nullptr;
        largest_of_row(map.at(b, c, 0, 0), map.row, map.width, axes[l].rows.windows[i], axes[l].columns.windows,
                       scratch, largest, to);
        for (int32_t j = 0; j < sizes.width; ++j) sum[j] += largest[j];
      } else {
        const T* values = map.at(b, c, axes[l].rows.nearest[i], 0);
        const int32_t* columns = axes[l].columns.nearest.data();
        for (int32_t j = 0; j < sizes.width; ++j) sum[j] += to_number(values[columns[j]]);
      }
    }
    T* to = mean.at(b, c, i, 0);
    for (int32_t j = 0; j < sizes.width; ++j) from_number(sum[j] / divisor, to[j]);
  }
}

// Adds a plane's values to those of the larger plane where each had been the largest. `sums`: dense.
template <class T, class I>
LIBRA_BODY void add_to_largest(const Number<T>* values, const Axes& axes, const I* index, Number<T>* sums,
                               int32_t width) {
  for (const Span rows : axes.rows.windows) {
    for (const Span columns : axes.columns.windows) {
      const auto offset = static_cast<int32_t>(*index++);
      const int32_t window_width = columns.last - columns.first;
      const int32_t y = rows.first + offset / window_width, x = columns.first + offset % window_width;
      if (rows.first <= y && y < rows.last) sums[static_cast<int64_t>(y) * width + x] += *values;
      ++values;
    }
  }
}

// Adds to every cell of the smaller plane the values of the larger whose nearest it is. `sums`: dense.
template <class T>
LIBRA_BODY void add_to_nearest(const T* values, int64_t stride, int32_t width, const Axes& axes, Number<T>* row,
                               Number<T>* sums) {
  const int32_t* columns = axes.columns.nearest.data();
  for (const Span rows : axes.rows.windows) {
    if (rows.first < rows.last) {
      for (int32_t x = 0; x < width; ++x) row[x] = to_number(values[rows.first * stride + x]);
      for (int32_t y = rows.first + 1; y < rows.last; ++y)
        for (int32_t x = 0; x < width; ++x) row[x] += to_number(values[y * stride + x]);
      for (int32_t x = 0; x < width; ++x) sums[columns[x]] += row[x];
    }
    sums += axes.columns.windows.size();
  }
}

template <class T>
LIBRA_BODY void store_plane(const Map<T>& map, int64_t b, int64_t c, const Number<T>* values) {
  for (int32_t y = 0; y < map.height; ++y) {
    T* to = map.at(b, c, y, 0);
    for (int32_t x = 0; x < map.width; ++x) from_number(values[x], to[x]);
    values += map.width;
  }
}

template <class T, class I>
LIBRA_VECTOR_CLONES void integrate_backward_plane(const Map<const T>& gradient, const PyramidSizes& sizes,
                                                  const std::vector<Axes>& axes, const I* index,
                                                  const Pyramid<T>& levels, int64_t b, int64_t c, Scratch<T>& scratch) {
  const int64_t plane_size = static_cast<int64_t>(sizes.height) * sizes.width;
  const int64_t map_size = sizes.batch * sizes.channels * plane_size;
  const auto divisor = static_cast<Number<T>>(levels.count);
  Number<T>* scaled = scratch.plane.data();
  Number<T>* sums = scaled + plane_size;
  for (int32_t i = 0; i < sizes.height; ++i) {
    const T* values = gradient.at(b, c, i, 0);
    Number<T>* row = scaled + static_cast<int64_t>(i) * sizes.width;
    for (int32_t j = 0; j < sizes.width; ++j) row[j] = to_number(values[j]) / divisor;
  }
  for (int l = 0; l < levels.count; ++l) {
    const Map<T>& map = levels.levels[l];
    if (l == levels.refine) {
      store_plane(map, b, c, scaled);
      continue;
    }
    std::fill(sums, sums + static_cast<int64_t>(map.height) * map.width, Number<T>(0));
    if (l < levels.refine) {
      const I* own = index + l * map_size + (b * sizes.channels + c) * plane_size;
      add_to_largest<T>(scaled, axes[l], own, sums, map.width);
    } else {
      for (int32_t i = 0; i < sizes.height; ++i) {
        Number<T>* row = sums + static_cast<int64_t>(axes[l].rows.nearest[i]) * map.width;
        const Number<T>* from = scaled + static_cast<int64_t>(i) * sizes.width;
        const int32_t* columns = axes[l].columns.nearest.data();
        for (int32_t j = 0; j < sizes.width; ++j) row[columns[j]] += from[j];
      }
    }
    store_plane(map, b, c, sums);
  }
}

template <class T, class I>
LIBRA_VECTOR_CLONES void scatter_plane(const Map<const T>& map, const Map<const T>& refined, const PyramidSizes& sizes,
                                       const Axes& axes, const Map<T>& output, I* index, bool coarser, int64_t b,
                                       int64_t c, Scratch<T>& scratch) {
  Number<T>* added = scratch.plane.data();
  const int64_t plane = (b * sizes.channels + c) * map.height * map.width;
  for (int32_t y = 0; y < map.height; ++y) {
    if (coarser) {
      largest_of_row(refined.at(b, c, 0, 0), refined.row, sizes.width, axes.rows.windows[y], axes.columns.windows,
                     scratch, added, index ? index + plane + static_cast<int64_t>(y) * map.width : nullptr);
    } else {
      const T* values = refined.at(b, c, axes.rows.nearest[y], 0);
      const int32_t* columns = axes.columns.nearest.data();
      for (int32_t x = 0; x < map.width; ++x) added[x] = to_number(values[columns[x]]);
    }
    const T* own = map.at(b, c, y, 0);
    T* to = output.at(b, c, y, 0);
    for (int32_t x = 0; x < map.width; ++x) from_number(to_number(own[x]) + added[x], to[x]);
  }
}

template <class T, class I>
LIBRA_VECTOR_CLONES void scatter_backward_plane(const Pyramid<const T>& gradients, const PyramidSizes& sizes,
                                                const std::vector<Axes>& axes, const I* index, const Map<T>& result,
                                                int64_t b, int64_t c, Scratch<T>& scratch) {
  Number<T>* sums = scratch.plane.data();
  Number<T>* values = sums + static_cast<int64_t>(sizes.height) * sizes.width;
  std::fill(sums, values, Number<T>(0));
  for (int l = 0; l < gradients.count; ++l) {
    const Map<const T>& map = gradients.levels[l];
    if (l <= gradients.refine) {
      add_to_nearest(map.at(b, c, 0, 0), map.row, map.width, axes[l], scratch.row.data(), sums);
      continue;
    }
    const int64_t plane_size = static_cast<int64_t>(map.height) * map.width;
    for (int32_t y = 0; y < map.height; ++y) {
      Number<T>* row = values + static_cast<int64_t>(y) * map.width;
      for (int32_t x = 0; x < map.width; ++x) row[x] = to_number(*map.at(b, c, y, x));
    }
    add_to_largest<T>(values, axes[l], index + (b * sizes.channels + c) * plane_size, sums, sizes.width);
    index += sizes.batch * sizes.channels * plane_size;
  }
  store_plane(result, b, c, sums);
}

// Calls f(image, channel, scratch) for every plane; `whole`: scratch.plane has room for two planes, else for two rows.
template <class T, class L, class F>
void for_each_plane(const Pyramid<L>& levels, const PyramidSizes& sizes, bool whole, ParallelFor threads, const F& f) {
  int64_t cells = 0, widest = sizes.width, largest = static_cast<int64_t>(sizes.height) * sizes.width;
  for (int l = 0; l < levels.count; ++l) {
    const int64_t own = static_cast<int64_t>(levels.levels[l].height) * levels.levels[l].width;
    cells += own, largest = std::max(largest, own), widest = std::max<int64_t>(widest, levels.levels[l].width);
  }
  const int64_t grain = std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, cells));
  parallel_for(threads, sizes.batch * sizes.channels, grain, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch;
    scratch.row.resize(widest), scratch.where.resize(widest), scratch.plane.resize(2 * (whole ? largest : widest));
    for (int64_t plane = begin; plane < end; ++plane) f(plane / sizes.channels, plane % sizes.channels, scratch);
  });
}

}  // namespace

template <class T, class I>
void Planes<T, I>::integrate(const Pyramid<const T>& levels, const PyramidSizes& sizes, const Map<T>& mean, I* index,
                             ParallelFor threads) {
  const std::vector<Axes> axes = make_axes(levels, sizes, /*integrate=*/true);
  for_each_plane<T>(levels, sizes, /*whole=*/false, threads, [&](int64_t b, int64_t c, Scratch<T>& scratch) {
    integrate_plane(levels, sizes, axes, mean, index, b, c, scratch);
  });
}

template <class T, class I>
void Planes<T, I>::integrate_backward(const Map<const T>& gradient, const PyramidSizes& sizes, const I* index,
                                      const Pyramid<T>& levels, ParallelFor threads) {
  const std::vector<Axes> axes = make_axes(levels, sizes, /*integrate=*/true);
  for_each_plane<T>(levels, sizes, /*whole=*/true, threads, [&](int64_t b, int64_t c, Scratch<T>& scratch) {
    integrate_backward_plane(gradient, sizes, axes, index, levels, b, c, scratch);
  });
}

template <class T, class I>
void Planes<T, I>::scatter(const Pyramid<const T>& levels, const Map<const T>& refined, const PyramidSizes& sizes,
                           const Pyramid<T>& outputs, I* index, ParallelFor threads) {
  const std::vector<Axes> axes = make_axes(levels, sizes, /*integrate=*/false);
  for_each_plane<T>(levels, sizes, /*whole=*/false, threads, [&](int64_t b, int64_t c, Scratch<T>& scratch) {
    I* own = index;
    for (int l = 0; l < levels.count; ++l) {
      const Map<const T>& map = levels.levels[l];
      scatter_plane(map, refined, sizes, axes[l], outputs.levels[l], own, l > levels.refine, b, c, scratch);
      if (own && l > levels.refine) own += sizes.batch * sizes.channels * map.height * map.width;
    }
  });
}

template <class T, class I>
void Planes<T, I>::scatter_backward(const Pyramid<const T>& gradients, const PyramidSizes& sizes, const I* index,
                                    const Map<T>& result, ParallelFor threads) {
  const std::vector<Axes> axes = make_axes(gradients, sizes, /*integrate=*/false);
  for_each_plane<T>(gradients, sizes, /*whole=*/true, threads, [&](int64_t b, int64_t c, Scratch<T>& scratch) {
    scatter_backward_plane(gradients, sizes, axes, index, result, b, c, scratch);
  });
}

template struct Planes<float, uint8_t>;
template struct Planes<float, int32_t>;
template struct Planes<double, uint8_t>;
template struct Planes<double, int32_t>;
template struct Planes<Half, uint8_t>;
template struct Planes<Half, int32_t>;
template struct Planes<BFloat16, uint8_t>;
template struct Planes<BFloat16, int32_t>;

}  // namespace libra
