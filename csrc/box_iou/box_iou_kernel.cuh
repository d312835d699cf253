// box_iou and its backward on the GPU; no torch headers. B images, N rows (boxes1), M columns (boxes2).
//
// Forward: a block fills tiles of kTileRows x kTileColumns. A thread keeps four columns in registers while the rows,
// which every thread of a warp reads at the same time, come from shared memory. Pairs with a huge or non-finite box are
// then done again. Offsets are int64: N M may pass 2^31.
//
// Backward: one kernel per side, each of which reads the matrix of incoming gradients once and coalesced, and sums in a
// fixed order. A pair whose incoming gradient is 0 adds exactly 0, whatever its boxes hold.
#pragma once

#include "box_iou/box_iou_slope.h"
#include "common/block_reduce.cuh"

namespace libra {

constexpr int kIouThreads = 256;
constexpr int kTileRows = 64, kTileColumns = 256;
constexpr int kColumnThreads = kTileColumns / 4;           // each with four columns
constexpr int kRowThreads = kIouThreads / kColumnThreads;  // each with every fourth row
constexpr int64_t kIouMaxBlocks = 1 << 20;                 // beyond, a block fills several tiles

struct IouTile {
  int64_t image, row, column;
};

// Where a tile begins: tiles are numbered along the columns, then the rows, then the images.
LIBRA_HOST_DEVICE IouTile iou_tile(int64_t tile, int64_t n, int64_t m) {
  const int64_t column_tiles = (m + kTileColumns - 1) / kTileColumns, row_tiles = (n + kTileRows - 1) / kTileRows;
  return {tile / column_tiles / row_tiles, tile / column_tiles % row_tiles * kTileRows,
          tile % column_tiles * kTileColumns};
}

// 16-byte accesses: one for a box of float, two for one of double, one or two for four results.
template <class T>
struct alignas(16) Four {
  T value[4];
};

template <class T>
__device__ __forceinline__ Box<T> load_box(const T* boxes, int64_t index) {
  const Four<T> box = reinterpret_cast<const Four<T>*>(boxes)[index];
  return {box.value[0], box.value[1], box.value[2], box.value[3]};
}

template <class T>
__device__ __forceinline__ void store_box(T* boxes, int64_t index, const Box<T>& box) {
  reinterpret_cast<Four<T>*>(boxes)[index] = {{box.x1, box.y1, box.x2, box.y2}};
}

template <class T>
struct alignas(16) SharedSide {
  Side<T> side;
};

// Does the pairs of a tile with a huge or non-finite box again. Kept out of the hot code: double arithmetic takes many
// registers.
template <Kind kind, class T>
__device__ __noinline__ void mend_tile(const T* boxes1, const T* boxes2, T* out, IouTile tile, int64_t n, int64_t m) {
  const int64_t rows = tile.row + kTileRows < n ? kTileRows : n - tile.row;
  for (int64_t i = threadIdx.x; i < rows * kTileColumns; i += kIouThreads) {
    const int64_t row = tile.image * n + tile.row + i / kTileColumns, column = tile.column + i % kTileColumns;
    if (column >= m) continue;
    const Box<T> a = load_box(boxes1, row), b = load_box(boxes2, tile.image * m + column);
    if (is_huge(a) || is_huge(b)) out[row * m + column] = overlap_huge<kind>(a, b);
  }
}

// grid [blocks], block [kIouThreads]. boxes1 [B, N, 4], boxes2 [B, M, 4], 16-byte aligned -> out [B, N, M].
// kAligned: M is a multiple of 4, so that a thread's four neighbouring results are one 16-byte store; otherwise its
// columns lie kColumnThreads apart, and a warp's stores are neighbours.
template <Kind kind, bool kAligned, class T>
__global__ void __launch_bounds__(kIouThreads)
    box_iou_kernel(const T* __restrict__ boxes1, const T* __restrict__ boxes2, T* __restrict__ out, int64_t tiles,
                   int64_t n, int64_t m) {
  SHARED(SharedSide<T>, rows, [kTileRows]);
  const int column_thread = threadIdx.x % kColumnThreads, row_thread = threadIdx.x / kColumnThreads;
  constexpr int kStep = kAligned ? 1 : kColumnThreads;
  for (int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const IouTile tile = iou_tile(number, n, m);
    const int row_count = static_cast<int>(tile.row + kTileRows < n ? kTileRows : n - tile.row);
    const int64_t first = tile.column + column_thread * (kAligned ? 4 : 1);
    bool huge = false;
    Side<T> columns[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t column = first + k * kStep;
      const Box<T> box = column < m ? load_box(boxes2, tile.image * m + column) : Box<T>{T(0), T(0), T(0), T(0)};
      columns[k] = make_side<kind>(box);
      huge = huge || is_huge(box);
    }
    if (threadIdx.x < row_count) {
      const Box<T> box = load_box(boxes1, tile.image * n + tile.row + threadIdx.x);
      rows[threadIdx.x].side = make_side<kind>(box);
      huge = huge || is_huge(box);
    }
    huge = __syncthreads_or(huge);
    T* line = out + (tile.image * n + tile.row + row_thread) * m + first;
    for (int row = row_thread; row < row_count; row += kRowThreads, line += kRowThreads * m) {
      const Side<T> side = rows[row].side;
      Four<T> results;
#pragma unroll
      for (int k = 0; k < 4; ++k) results.value[k] = overlap<kind>(side, columns[k]);
      if constexpr (kAligned) {
        if (first < m) *reinterpret_cast<Four<T>*>(line) = results;
      } else {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (first + k * kStep < m) line[k * kStep] = results.value[k];
        }
      }
    }
    __syncthreads();  // before the next tile's rows, and before a result is written a second time
    if (huge) mend_tile<kind>(boxes1, boxes2, out, tile, n, m);
  }
}

// A thread's part of a tile: its box with the others first, first + step, ...; gradient is that of others[0], and
// gradient_step from other to other.
template <class T>
struct TilePart {
  const T* gradient;
  int64_t gradient_step;
  const SharedSide<T>* others;
  int first, step, count;
};

template <class T>
__device__ __forceinline__ void add_slope(T incoming, const Box<T>& slope, Box<T>& sum) {
  sum = {sum.x1 + incoming * slope.x1, sum.y1 + incoming * slope.y1, sum.x2 + incoming * slope.x2,
         sum.y2 + incoming * slope.y2};
}

template <Kind kind, bool kOwnIsFirst, class T>
__device__ __forceinline__ void add_slopes(const TilePart<T>& part, const Own<T>& own, Box<T>& sum) {
#pragma unroll 1  // several at a time would need more registers than there are
  for (int i = part.first; i < part.count; i += part.step) {
    const T incoming = part.gradient[i * part.gradient_step];
    if (incoming == T(0)) continue;
    add_slope(incoming, overlap_slope<kind, kOwnIsFirst>(own, part.others[i].side), sum);
  }
}

// The same for a tile with a huge or non-finite box, out of the hot code.
template <Kind kind, bool kOwnIsFirst, class T>
__device__ __noinline__ Box<T> add_slopes_rare(TilePart<T> part, Box<T> own, Box<T> sum) {
  for (int i = part.first; i < part.count; i += part.step) {
    const T incoming = part.gradient[i * part.gradient_step];
    const Side<T>& other = part.others[i].side;
    if (incoming == T(0)) continue;
    if (is_huge(own) || is_huge(other.box)) {
      add_slope(incoming, overlap_slope_huge<kind, kOwnIsFirst>(own, other.box), sum);
    } else {
      add_slope(incoming, overlap_slope<kind, kOwnIsFirst>(make_own<kind>(own), other), sum);
    }
  }
  return sum;
}

// The other side's boxes [0, count) into shared memory; whether one of them, or of the threads' own, is huge.
template <Kind kind, class T>
__device__ __forceinline__ bool load_others(const T* boxes, int64_t start, int count, const Box<T>& own,
                                            SharedSide<T>* others) {
  const int thread = threadIdx.y * 32 + threadIdx.x;
  bool huge = is_huge(own);
  if (thread < count) {
    const Box<T> box = load_box(boxes, start + thread);
    others[thread].side = make_side<kind>(box);
    huge = huge || is_huge(box);
  }
  return __syncthreads_or(huge);
}

constexpr int kSlopeWarps = 8;  // 256 threads; the boxes of the other side pass by in tiles of as many

// The gradient of boxes1. grid [blocks], block [32, kSlopeWarps]: a warp has a row of gradient [B, N, M], its lanes the
// columns.
template <Kind kind, class T>
__global__ void __launch_bounds__(32 * kSlopeWarps, sizeof(T) == 4 ? 2 : 1)
    box_iou_rows_kernel(const T* __restrict__ gradient, const T* __restrict__ boxes1, const T* __restrict__ boxes2,
                        T* __restrict__ grad1, int64_t blocks, int64_t n, int64_t m) {
  constexpr int kTile = 32 * kSlopeWarps;
  SHARED(SharedSide<T>, others, [kTile]);
  const int64_t blocks_per_image = (n + kSlopeWarps - 1) / kSlopeWarps;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t image = block / blocks_per_image, row = block % blocks_per_image * kSlopeWarps + threadIdx.y;
    const bool mine = row < n;
    const Box<T> box = mine ? load_box(boxes1, image * n + row) : Box<T>{T(0), T(0), T(0), T(0)};
    const Own<T> own = make_own<kind>(box);
    Box<T> sum{T(0), T(0), T(0), T(0)};
    for (int64_t start = 0; start < m; start += kTile) {
      const int count = static_cast<int>(m - start < kTile ? m - start : kTile);
      const bool huge = load_others<kind>(boxes2, image * m + start, count, box, others);
      const TilePart<T> part{
          gradient + (image * n + row) * m + start, 1, others, static_cast<int>(threadIdx.x), 32, mine ? count : 0};
      if (huge) {
        sum = add_slopes_rare<kind, true>(part, box, sum);
      } else {
        add_slopes<kind, true>(part, own, sum);
      }
      __syncthreads();  // before the next tile
    }
    sum = {warp_sum(sum.x1), warp_sum(sum.y1), warp_sum(sum.x2), warp_sum(sum.y2)};
    if (mine && threadIdx.x == 0) store_box(grad1, image * n + row, sum);
  }
}

// The gradient of boxes2. grid [blocks], block [32, kSlopeWarps]: a lane has a column of gradient [B, N, M], the warps
// take turns with the rows.
template <Kind kind, class T>
__global__ void __launch_bounds__(32 * kSlopeWarps, sizeof(T) == 4 ? 2 : 1)
    box_iou_columns_kernel(const T* __restrict__ gradient, const T* __restrict__ boxes1, const T* __restrict__ boxes2,
                           T* __restrict__ grad2, int64_t blocks, int64_t n, int64_t m) {
  constexpr int kTile = 32 * kSlopeWarps;
  SHARED(SharedSide<T>, others, [kTile]);
  SHARED(Box<T>, sums, [kSlopeWarps][32]);
  const int64_t blocks_per_image = (m + 31) / 32;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t image = block / blocks_per_image, column = block % blocks_per_image * 32 + threadIdx.x;
    const bool mine = column < m;
    const Box<T> box = mine ? load_box(boxes2, image * m + column) : Box<T>{T(0), T(0), T(0), T(0)};
    const Own<T> own = make_own<kind>(box);
    Box<T> sum{T(0), T(0), T(0), T(0)};
    for (int64_t start = 0; start < n; start += kTile) {
      const int count = static_cast<int>(n - start < kTile ? n - start : kTile);
      const bool huge = load_others<kind>(boxes1, image * n + start, count, box, others);
      const TilePart<T> part{gradient + (image * n + start) * m + column,
                             m,
                             others,
                             static_cast<int>(threadIdx.y),
                             kSlopeWarps,
                             mine ? count : 0};
      if (huge) {
        sum = add_slopes_rare<kind, false>(part, box, sum);
      } else {
        add_slopes<kind, false>(part, own, sum);
      }
      __syncthreads();  // before the next tile
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (mine && threadIdx.y == 0) {
      for (int warp = 1; warp < kSlopeWarps; ++warp) {
        const Box<T>& part = sums[warp][threadIdx.x];
        sum = {sum.x1 + part.x1, sum.y1 + part.y1, sum.x2 + part.x2, sum.y2 + part.y2};
      }
      store_box(grad2, image * m + column, sum);
    }
    __syncthreads();  // before the next block's sums
  }
}

inline dim3 iou_grid(int64_t blocks) {
  return dim3(static_cast<unsigned>(blocks < kIouMaxBlocks ? blocks : kIouMaxBlocks));
}

// boxes1 [B, N, 4], boxes2 [B, M, 4], out [B, N, M]: contiguous and 16-byte aligned.
template <class T>
cudaError_t launch_box_iou(Kind kind, const T* boxes1, const T* boxes2, T* out, int64_t batch, int64_t n, int64_t m,
                           cudaStream_t stream) {
  const int64_t tiles = batch * ((n + kTileRows - 1) / kTileRows) * ((m + kTileColumns - 1) / kTileColumns);
  if (tiles == 0) return cudaSuccess;
  return with_kind(kind, [&](auto chosen) {
    constexpr Kind kKind = decltype(chosen)::value;
    return launch(m % 4 == 0 ? box_iou_kernel<kKind, true, T> : box_iou_kernel<kKind, false, T>, iou_grid(tiles),
                  dim3(kIouThreads), 0, stream, boxes1, boxes2, out, tiles, n, m);
  });
}

// gradient [B, N, M]; grad1 [B, N, 4], grad2 [B, M, 4] are written completely. All contiguous and 16-byte aligned.
template <class T>
cudaError_t launch_box_iou_backward(Kind kind, const T* gradient, const T* boxes1, const T* boxes2, T* grad1, T* grad2,
                                    int64_t batch, int64_t n, int64_t m, cudaStream_t stream) {
  const int64_t row_blocks = batch * ((n + kSlopeWarps - 1) / kSlopeWarps), column_blocks = batch * ((m + 31) / 32);
  return with_kind(kind, [&](auto chosen) {
    constexpr Kind kKind = decltype(chosen)::value;
    cudaError_t error = cudaSuccess;
    if (row_blocks) {
      error = launch(box_iou_rows_kernel<kKind, T>, iou_grid(row_blocks), dim3(32, kSlopeWarps), 0, stream, gradient,
                     boxes1, boxes2, grad1, row_blocks, n, m);
    }
    if (column_blocks && error == cudaSuccess) {
      error = launch(box_iou_columns_kernel<kKind, T>, iou_grid(column_blocks), dim3(32, kSlopeWarps), 0, stream,
                     gradient, boxes1, boxes2, grad2, column_blocks, n, m);
    }
    return error;
  });
}

}  // namespace libra
