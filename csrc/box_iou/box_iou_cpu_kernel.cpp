// box_iou and its backward on the CPU: tiles of rows x columns, shared out among the threads.
//
// A tile's columns are first turned into one array per coordinate, which stays in L1 while its rows pass over it in
// vector code without branches. Pairs with a huge or non-finite box, which that code cannot do, are then done again one
// by one. B images, N rows (boxes1), M columns (boxes2).
#include <algorithm>

#include "box_iou/box_iou_cpu_kernel.h"
#include "box_iou/box_iou_slope.h"
#include "common/vector_clones.h"

namespace libra {
namespace {

constexpr int kTileRows = 64, kTileColumns = 1024;

// The boxes of a tile's columns, one array per coordinate.
template <class T, int kCapacity>
struct Columns {
  T x1[kCapacity], y1[kCapacity], x2[kCapacity], y2[kCapacity], area[kCapacity], angle[kCapacity];
  bool huge = false;  // at least one of them is_huge()

  template <Kind kind>
  void load(const Box<T>* boxes, int count) {
    for (int i = 0; i < count; ++i) {
      const Side<T> side = make_side<kind>(boxes[i]);
      x1[i] = side.box.x1, y1[i] = side.box.y1, x2[i] = side.box.x2, y2[i] = side.box.y2;
      area[i] = side.area, angle[i] = side.angle;
      huge |= is_huge(boxes[i]);
    }
  }
  Side<T> operator[](int i) const { return {{x1[i], y1[i], x2[i], y2[i]}, area[i], angle[i]}; }
};

// out: the tile's first element; `stride` elements from row to row.
template <Kind kind, class T>
LIBRA_VECTOR_CLONES void fill_tile(const Box<T>* rows, int row_count, const Box<T>* boxes, int count,
                                   T* __restrict__ out, int64_t stride) {
  Columns<T, kTileColumns> columns;
  columns.template load<kind>(boxes, count);
  for (int i = 0; i < row_count; ++i, out += stride) {
    const Side<T> row = make_side<kind>(rows[i]);
    for (int j = 0; j < count; ++j) out[j] = overlap<kind>(row, columns[j]);
    const bool huge = is_huge(rows[i]);
    for (int j = 0; (huge || columns.huge) && j < count; ++j) {
      if (huge || is_huge(boxes[j])) out[j] = overlap_huge<kind>(rows[i], boxes[j]);
    }
  }
}

// The backward makes one pass per side. It sums in a fixed order that no number of threads changes: kLanes partial sums
// per box, added in double at the end. A pair whose incoming gradient is 0 adds exactly 0, whatever its boxes hold.
constexpr int kOwns = 16;  // boxes whose gradients are summed at a time
constexpr int kLanes = 64;

template <class T>
struct SlopeSums {
  T x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes];

  LIBRA_FORMULA void add(int lane, T incoming, const Box<T>& slope) {
    const bool counts = incoming != T(0);
    x1[lane] += counts ? incoming * slope.x1 : T(0);
    y1[lane] += counts ? incoming * slope.y1 : T(0);
    x2[lane] += counts ? incoming * slope.x2 : T(0);
    y2[lane] += counts ? incoming * slope.y2 : T(0);
  }
  Box<T> total() const {
    Box<double> sum{};
    for (int lane = 0; lane < kLanes; ++lane) {
      sum.x1 += x1[lane], sum.y1 += y1[lane], sum.x2 += x2[lane], sum.y2 += y2[lane];
    }
    return {static_cast<T>(sum.x1), static_cast<T>(sum.y1), static_cast<T>(sum.x2), static_cast<T>(sum.y2)};
  }
};

// The gradients of up to kOwns boxes of one side; the incoming gradient of a pair is
// gradient[own * own_stride + other * other_stride].
template <Kind kind, bool kOwnIsFirst, class T>
LIBRA_VECTOR_CLONES void slopes_of_boxes(const Box<T>* owns, int own_count, const Box<T>* others, int64_t other_count,
                                         const T* gradient, int64_t own_stride, int64_t other_stride, Box<T>* result) {
  SlopeSums<T> sums[kOwns] = {};
  for (int64_t start = 0; start < other_count; start += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, other_count - start));
    Columns<T, kLanes> columns;
    columns.template load<kind>(others + start, count);
    for (int i = 0; i < own_count; ++i) {
      const Own<T> own = make_own<kind>(owns[i]);
      T incoming[kLanes];
      for (int j = 0; j < count; ++j) incoming[j] = gradient[i * own_stride + (start + j) * other_stride];
      if (columns.huge || is_huge(owns[i])) {
        for (int j = 0; j < count; ++j) {
          sums[i].add(j, incoming[j], overlap_slope_huge<kind, kOwnIsFirst>(owns[i], others[start + j]));
        }
      } else {
        for (int j = 0; j < count; ++j) {
          sums[i].add(j, incoming[j], overlap_slope<kind, kOwnIsFirst>(own, columns[j]));
        }
      }
    }
  }
  for (int i = 0; i < own_count; ++i) result[i] = sums[i].total();
}

// owns: n or m boxes per image, others: m or n.
template <bool kOwnIsFirst, class T>
void backward_side(Kind kind, const Box<T>* owns, const Box<T>* others, const T* gradient, Box<T>* results,
                   int64_t batch, int64_t own_count, int64_t other_count, ParallelFor threads) {
  const int64_t blocks = (own_count + kOwns - 1) / kOwns;
  const int64_t own_stride = kOwnIsFirst ? other_count : 1, other_stride = kOwnIsFirst ? 1 : own_count;
  parallel_for(threads, batch * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t image = block / blocks, own = block % blocks * kOwns;
      with_kind(kind, [&](auto chosen) {
        constexpr Kind kKind = decltype(chosen)::value;
        slopes_of_boxes<kKind, kOwnIsFirst && kKind == Kind::kIof, T>(  // the other kinds are symmetric
            owns + image * own_count + own, static_cast<int>(std::min<int64_t>(kOwns, own_count - own)),
            others + image * other_count, other_count, gradient + image * own_count * other_count + own * own_stride,
            own_stride, other_stride, results + image * own_count + own);
      });
    }
  });
}

}  // namespace

template <class T>
void box_iou(Kind kind, const Box<T>* boxes1, const Box<T>* boxes2, T* overlaps, int64_t batch, int64_t n, int64_t m,
             ParallelFor threads) {
  const int64_t row_tiles = (n + kTileRows - 1) / kTileRows, column_tiles = (m + kTileColumns - 1) / kTileColumns;
  parallel_for(threads, batch * row_tiles * column_tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t image = tile / (row_tiles * column_tiles);
      const int64_t row = tile / column_tiles % row_tiles * kTileRows, column = tile % column_tiles * kTileColumns;
      const int row_count = static_cast<int>(std::min<int64_t>(kTileRows, n - row));
      const int count = static_cast<int>(std::min<int64_t>(kTileColumns, m - column));
      with_kind(kind, [&](auto chosen) {
        fill_tile<decltype(chosen)::value, T>(boxes1 + image * n + row, row_count, boxes2 + image * m + column, count,
                                              overlaps + (image * n + row) * m + column, m);
      });
    }
  });
}

template <class T>
void box_iou_backward(Kind kind, const T* gradient, const Box<T>* boxes1, const Box<T>* boxes2, Box<T>* grad1,
                      Box<T>* grad2, int64_t batch, int64_t n, int64_t m, ParallelFor threads) {
  backward_side<true>(kind, boxes1, boxes2, gradient, grad1, batch, n, m, threads);
  backward_side<false>(kind, boxes2, boxes1, gradient, grad2, batch, m, n, threads);
}

template void box_iou<float>(Kind, const Box<float>*, const Box<float>*, float*, int64_t, int64_t, int64_t,
                             ParallelFor);
template void box_iou<double>(Kind, const Box<double>*, const Box<double>*, double*, int64_t, int64_t, int64_t,
                              ParallelFor);
template void box_iou_backward<float>(Kind, const float*, const Box<float>*, const Box<float>*, Box<float>*,
                                      Box<float>*, int64_t, int64_t, int64_t, ParallelFor);
template void box_iou_backward<double>(Kind, const double*, const Box<double>*, const Box<double>*, Box<double>*,
                                       Box<double>*, int64_t, int64_t, int64_t, ParallelFor);

}  // namespace libra
