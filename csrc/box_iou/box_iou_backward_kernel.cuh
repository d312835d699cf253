// The backward of box_iou on the GPU; no torch headers. B images, N rows (boxes1), M columns (boxes2).
//
// One pass over the matrix of incoming gradients serves both sides, which share most of the arithmetic. A block has a
// tile of rows x columns; a warp goes through every fourth row of it, a lane keeping four columns (two of double) and
// their sums in registers. A row's sum goes across the warp, a column's at the end across the block's warps. Where the
// matrix has several tiles in a row or in a column, these are partial sums, and a second kernel adds them up.
// Everything is added in an order that depends on N and M alone. A pair whose incoming gradient is 0 adds exactly 0,
// whatever its boxes hold.
#pragma once

#include "box_iou/box_iou_kernel.cuh"
#include "box_iou/box_iou_slope.h"

namespace libra {

constexpr int kSlopeWarps = 4;
constexpr int kSlopeThreads = 32 * kSlopeWarps;
template <class T>
constexpr int kLaneColumns = sizeof(T) == 4 ? 4 : 2;
template <class T>
constexpr int kSlopeColumns = 32 * kLaneColumns<T>;  // of a tile
constexpr int kSlopeLeastRows = 32;                  // of a tile: fewer would not be worth its columns' sums
constexpr int64_t kSlopeTiles = 1056;                // wanted: two for each block that an H200 holds at a time
constexpr int64_t kSlopeMaxBlocks = 1 << 20;         // beyond, a block has several tiles

struct SlopePlan {
  int64_t row_tiles, column_tiles;  // of an image
  int64_t rows;                     // of a tile
  int64_t tiles;                    // of all images, numbered along the columns, then the rows, then the images
};

template <class T>
SlopePlan plan_slopes(int64_t batch, int64_t n, int64_t m) {
  SlopePlan plan{};
  plan.column_tiles = (m + kSlopeColumns<T> - 1) / kSlopeColumns<T>;
  if (batch == 0 || n == 0 || m == 0) return plan;
  const int64_t wanted = kSlopeTiles / (batch * plan.column_tiles);
  const int64_t rows = wanted > 1 ? (n + wanted - 1) / wanted : n;
  plan.rows = rows < kSlopeLeastRows ? kSlopeLeastRows : (rows + kSlopeWarps - 1) / kSlopeWarps * kSlopeWarps;
  plan.row_tiles = (n + plan.rows - 1) / plan.rows;
  plan.tiles = batch * plan.row_tiles * plan.column_tiles;
  return plan;
}

// Boxes of partial sums that the backward needs beside its results: none where a side has one tile.
inline int64_t slope_partials1(const SlopePlan& plan, int64_t batch, int64_t n) {
  return plan.column_tiles > 1 ? batch * plan.column_tiles * n : 0;
}
inline int64_t slope_partials2(const SlopePlan& plan, int64_t batch, int64_t m) {
  return plan.row_tiles > 1 ? batch * plan.row_tiles * m : 0;
}

// Where a tile lies, and where its sums go: grad1 [image, column tile, N], grad2 [image, row tile, M].
template <class T>
struct SlopeTile {
  const T* gradient;  // of its first row and column
  const T* boxes1;    // of its first row
  const T* boxes2;    // of its first column
  T* grad1;
  T* grad2;
  int rows, columns;
};

template <class T>
__device__ __forceinline__ SlopeTile<T> slope_tile(int64_t tile, const SlopePlan& plan, const T* gradient,
                                                   const T* boxes1, const T* boxes2, T* grad1, T* grad2, int64_t n,
                                                   int64_t m) {
  const int64_t column_tile = tile % plan.column_tiles, row_tile = tile / plan.column_tiles % plan.row_tiles;
  const int64_t image = tile / plan.column_tiles / plan.row_tiles;
  const int64_t row = row_tile * plan.rows, column = column_tile * kSlopeColumns<T>;
  return {gradient + (image * n + row) * m + column,
          boxes1 + 4 * (image * n + row),
          boxes2 + 4 * (image * m + column),
          grad1 + 4 * ((image * plan.column_tiles + column_tile) * n + row),
          grad2 + 4 * ((image * plan.row_tiles + row_tile) * m + column),
          static_cast<int>(n - row < plan.rows ? n - row : plan.rows),
          static_cast<int>(m - column < kSlopeColumns<T> ? m - column : kSlopeColumns<T>)};
}

// A lane's columns of a tile: neighbours where they can be read in 16 bytes, otherwise 32 apart.
template <bool kAligned, class T>
__device__ __forceinline__ int slope_column(int k) {
  const int lane = threadIdx.x % 32;
  return kAligned ? kLaneColumns<T> * lane + k : lane + 32 * k;
}

template <class T>
struct alignas(16) LaneValues {
  T value[kLaneColumns<T>];
};

template <bool kAligned, class T>
__device__ __forceinline__ LaneValues<T> load_gradients(const T* row, int columns) {
  LaneValues<T> values{};
  if constexpr (kAligned) {
    const int first = slope_column<true, T>(0);
    if (first < columns) values = *reinterpret_cast<const LaneValues<T>*>(row + first);
  } else {
#pragma unroll
    for (int k = 0; k < kLaneColumns<T>; ++k) {
      const int column = slope_column<false, T>(k);
      if (column < columns) values.value[k] = row[column];
    }
  }
  return values;
}

// The four sums over a warp: that of box.x1 in lanes 0 to 7, of y1 in 8 to 15, of x2 and of y2.
template <class T>
__device__ __forceinline__ T warp_sums(const Box<T>& box) {
  const bool upper = threadIdx.x & 16, right = threadIdx.x & 8;
  const T first = (upper ? box.x2 : box.x1) + __shfl_xor_sync(kFullWarp, upper ? box.x1 : box.x2, 16);
  const T second = (upper ? box.y2 : box.y1) + __shfl_xor_sync(kFullWarp, upper ? box.y1 : box.y2, 16);
  T sum = (right ? second : first) + __shfl_xor_sync(kFullWarp, right ? first : second, 8);
  for (int offset = 4; offset; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
  return sum;
}

// What the pairs of `own` with a box that is not plain add to its gradient. others [count] are of the other side.
template <Kind kind, bool kOwnIsFirst, class T>
__device__ __forceinline__ void mend_slope(const T* own_box, const T* others, int count, const T* gradient,
                                           int64_t gradient_step, T* result) {
  const Box<T> own = load_box(own_box, 0);
  const bool plain = is_plain(own);
  Box<T> sum = load_box(result, 0);
  for (int i = 0; i < count; ++i) {
    const Box<T> other = load_box(others, i);
    const T incoming = gradient[i * gradient_step];
    if (incoming == T(0) || (plain && is_plain(other))) continue;
    const Box<T> slope = is_huge(own) || is_huge(other)
                             ? overlap_slope_huge<kind, kOwnIsFirst>(own, other)
                             : overlap_slope<kind, kOwnIsFirst>(make_own<kind>(own), make_side<kind>(other));
    sum = {sum.x1 + incoming * slope.x1, sum.y1 + incoming * slope.y1, sum.x2 + incoming * slope.x2,
           sum.y2 + incoming * slope.y2};
  }
  store_box(result, 0, sum);
}

// Adds what the tile's pairs with a box that is not plain have been left out with. Out of the hot code: double
// arithmetic takes many registers.
template <Kind kind, class T>
__device__ __noinline__ void mend_slopes(SlopeTile<T> tile, int64_t m) {
  for (int row = threadIdx.x; row < tile.rows; row += kSlopeThreads) {
    mend_slope<kind, kind == Kind::kIof>(tile.boxes1 + 4 * row, tile.boxes2, tile.columns, tile.gradient + row * m, 1,
                                         tile.grad1 + 4 * row);
  }
  for (int column = threadIdx.x; column < tile.columns; column += kSlopeThreads) {
    mend_slope<kind, false>(tile.boxes2 + 4 * column, tile.boxes1, tile.rows, tile.gradient + column, m,
                            tile.grad2 + 4 * column);
  }
}

// grid [blocks], block [kSlopeThreads]. gradient [B, N, M], boxes1 [B, N, 4], boxes2 [B, M, 4] -> sums of tiles, grad1
// [B, column tiles, N, 4], grad2 [B, row tiles, M, 4]. All but gradient are 16-byte aligned; kAligned: that too, and M
// is a multiple of kLaneColumns.
template <Kind kind, bool kAligned, class T>
__global__ void __launch_bounds__(kSlopeThreads, sizeof(T) == 8        ? 2
                                                 : kind == Kind::kCiou ? 3
                                                                       : 4)
    box_iou_backward_kernel(const T* __restrict__ gradient, const T* __restrict__ boxes1, const T* __restrict__ boxes2,
                            T* grad1, T* grad2, SlopePlan plan, int64_t n, int64_t m) {
  SHARED(Box<T>, warp_columns, [kSlopeWarps][kSlopeColumns<T>]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  constexpr int kLane = kLaneColumns<T>;
  constexpr Box<T> kNoBox{T(0), T(0), T(0), T(0)};
  for (int64_t number = blockIdx.x; number < plan.tiles; number += gridDim.x) {
    const SlopeTile<T> tile = slope_tile(number, plan, gradient, boxes1, boxes2, grad1, grad2, n, m);
    Side<T> columns[kLane];
    SlopeSum<T> column_sums[kLane] = {};
    bool left_out[kLane], lane_left_out = false;
#pragma unroll
    for (int k = 0; k < kLane; ++k) {
      const int column = slope_column<kAligned, T>(k);
      const Box<T> box = column < tile.columns ? load_box(tile.boxes2, column) : kNoBox;
      left_out[k] = !is_plain(box);
      lane_left_out = lane_left_out || left_out[k];
      columns[k] = make_side<kind>(left_out[k] ? kNoBox : box);
    }
    const bool some_left_out = __any_sync(kFullWarp, lane_left_out);
    bool mend = some_left_out;
    LaneValues<T> next_gradients{};
    Box<T> next_box = kNoBox;
    if (warp < tile.rows) {
      next_gradients = load_gradients<kAligned>(tile.gradient + warp * m, tile.columns);
      next_box = load_box(tile.boxes1, warp);
    }
#pragma unroll 1
    for (int row = warp; row < tile.rows; row += kSlopeWarps) {
      LaneValues<T> incoming = next_gradients;
      const Box<T> box = next_box;
      if (row + kSlopeWarps < tile.rows) {  // asked for before this row is worked on
        next_gradients = load_gradients<kAligned>(tile.gradient + (row + kSlopeWarps) * m, tile.columns);
        next_box = load_box(tile.boxes1, row + kSlopeWarps);
      }
      Box<T> row_total = kNoBox;
      if (is_plain(box)) {
        if (some_left_out) {
#pragma unroll
          for (int k = 0; k < kLane; ++k) incoming.value[k] = left_out[k] ? T(0) : incoming.value[k];
        }
        const Own<T> own = make_own<kind>(box);
        SlopeSum<T> row_sum{};
#pragma unroll
        for (int k = 0; k < kLane; ++k) {
          add_slopes<kind, PlainDivision>(incoming.value[k], own.side, own.area_counts, columns[k], row_sum,
                                          column_sums[k]);
        }
        row_total = total<kind>(row_sum, own);
      } else {
        mend = true;
      }
      const T sum = warp_sums(row_total);
      if (lane % 8 == 0) tile.grad1[4 * row + lane / 8] = sum;
    }
#pragma unroll
    for (int k = 0; k < kLane; ++k) {
      warp_columns[warp][slope_column<kAligned, T>(k)] = total<kind>(column_sums[k], make_own<kind>(columns[k].box));
    }
    __syncthreads();
    if (threadIdx.x < tile.columns) {
      Box<T> sum = warp_columns[0][threadIdx.x];
      for (int other = 1; other < kSlopeWarps; ++other) {
        const Box<T>& part = warp_columns[other][threadIdx.x];
        sum = {sum.x1 + part.x1, sum.y1 + part.y1, sum.x2 + part.x2, sum.y2 + part.y2};
      }
      store_box(tile.grad2, threadIdx.x, sum);
    }
    if (__syncthreads_or(mend)) mend_slopes<kind>(tile, m);
    __syncthreads();  // before the next tile's sums
  }
}

// The sums of partial [B, parts, count, 4] over `parts` -> result [B, count, 4].
template <class T>
struct SlopeParting {
  const T* partial;
  T* result;
  int64_t parts, count, blocks;  // blocks: 0 where there is nothing to add up
};

constexpr int kMeetBoxes = 8, kMeetParts = 32;  // of a block: neighbours, and the turns in which their parts are added

// grid [first.blocks + second.blocks], block [kMeetBoxes, kMeetParts].
template <class T>
__global__ void __launch_bounds__(kMeetBoxes* kMeetParts)
    add_slope_parts_kernel(SlopeParting<T> first, SlopeParting<T> second) {
  SHARED(Box<double>, sums, [kMeetParts][kMeetBoxes]);
  const bool is_first = blockIdx.x < first.blocks;
  const SlopeParting<T> side = is_first ? first : second;
  const unsigned block = is_first ? blockIdx.x : blockIdx.x - static_cast<unsigned>(first.blocks);
  const unsigned blocks_per_image = static_cast<unsigned>((side.count + kMeetBoxes - 1) / kMeetBoxes);
  const int64_t image = block / blocks_per_image;
  const int64_t box = static_cast<int64_t>(block % blocks_per_image) * kMeetBoxes + threadIdx.x;
  Box<double> sum{};
  if (box < side.count) {
#pragma unroll 8
    for (int64_t part = threadIdx.y; part < side.parts; part += kMeetParts) {
      const Box<double> value = to_double(load_box(side.partial, (image * side.parts + part) * side.count + box));
      sum = {sum.x1 + value.x1, sum.y1 + value.y1, sum.x2 + value.x2, sum.y2 + value.y2};
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || box >= side.count) return;
  for (int other = 1; other < kMeetParts; ++other) {
    const Box<double>& part = sums[other][threadIdx.x];
    sum = {sum.x1 + part.x1, sum.y1 + part.y1, sum.x2 + part.x2, sum.y2 + part.y2};
  }
  store_box(side.result, image * side.count + box,
            Box<T>{static_cast<T>(sum.x1), static_cast<T>(sum.y1), static_cast<T>(sum.x2), static_cast<T>(sum.y2)});
}

// gradient [B, N, M] -> grad1 [B, N, 4], grad2 [B, M, 4], written completely. partial1, partial2: slope_partials1() and
// slope_partials2() boxes; null for none. All contiguous; all but gradient 16-byte aligned.
template <class T>
cudaError_t launch_box_iou_backward(Kind kind, const T* gradient, const T* boxes1, const T* boxes2, T* grad1, T* grad2,
                                    T* partial1, T* partial2, int64_t batch, int64_t n, int64_t m,
                                    cudaStream_t stream) {
  const SlopePlan plan = plan_slopes<T>(batch, n, m);
  if (plan.tiles == 0) {  // a box without a partner has gradient 0
    const cudaError_t error = cudaMemsetAsync(grad1, 0, 4 * sizeof(T) * batch * n, stream);
    return error == cudaSuccess ? cudaMemsetAsync(grad2, 0, 4 * sizeof(T) * batch * m, stream) : error;
  }
  const bool aligned = m % kLaneColumns<T> == 0 && reinterpret_cast<uintptr_t>(gradient) % 16 == 0;
  cudaError_t error = with_kind(kind, [&](auto chosen) {
    constexpr Kind kKind = decltype(chosen)::value;
    const auto kernel = aligned ? box_iou_backward_kernel<kKind, true, T> : box_iou_backward_kernel<kKind, false, T>;
    return launch(kernel, dim3(static_cast<unsigned>(plan.tiles < kSlopeMaxBlocks ? plan.tiles : kSlopeMaxBlocks)),
                  dim3(kSlopeThreads), 0, stream, gradient, boxes1, boxes2, partial1 ? partial1 : grad1,
                  partial2 ? partial2 : grad2, plan, n, m);
  });
  if (error != cudaSuccess || (!partial1 && !partial2)) return error;
  const auto parting = [&](T* partial, T* result, int64_t parts, int64_t count) {
    return SlopeParting<T>{partial, result, parts, count,
                           partial ? batch * ((count + kMeetBoxes - 1) / kMeetBoxes) : 0};
  };
  const auto first = parting(partial1, grad1, plan.column_tiles, n),
             second = parting(partial2, grad2, plan.row_tiles, m);
  return launch(add_slope_parts_kernel<T>, dim3(static_cast<unsigned>(first.blocks + second.blocks)),
                dim3(kMeetBoxes, kMeetParts), 0, stream, first, second);
}

}  // namespace libra
