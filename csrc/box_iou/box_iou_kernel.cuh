// box_iou on the GPU; no torch headers. B images, N rows (boxes1), M columns (boxes2).
//
// What binds is the writing of the matrix, so the arithmetic of a pair has to fit beside its 4 bytes. A thread keeps
// four columns in registers and walks down the rows, which come from shared memory; its four results are one 16-byte
// store. The threads of a block are laid out for M, so that few idle: `columns` of them side by side, as many rows of
// those as fit. One wave of blocks shares all rows out evenly, and each loads its columns once. Boxes in the range of
// ordinary images divide without a branch (box_iou_quotient.h); the pairs of others are done again, more slowly.
// Offsets are int64: N M may pass 2^31.
#pragma once

#include "box_iou/box_iou_quotient.h"
#include "common/block_reduce.cuh"

namespace libra {

constexpr int kIouThreads = 256;
constexpr int kIouChunk = 256;  // rows in shared memory at a time

// Threads of a multiprocessor at work: as many as have the registers they take.
template <Kind kind, bool kAligned, class T>
constexpr int kIouResident = sizeof(T) == 8                             ? 512
                             : kind != Kind::kIou && kind != Kind::kIof ? 768
                             : kAligned                                 ? 1280
                                                                        : 1024;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
constexpr int kMostResident = 1024;
#else
constexpr int kMostResident = 1536;
#endif

template <Kind kind, bool kAligned, class T>
constexpr int kIouBlocks =
    (kIouResident<kind, kAligned, T> < kMostResident ? kIouResident<kind, kAligned, T> : kMostResident) / kIouThreads;

struct GpuSize {
  int multiprocessors, threads_per_multiprocessor;
};

// How the work is laid out. A strip is all rows of one image under one tile of columns; a line is one row of a strip.
struct IouPlan {
  int columns, rows;  // threads of a block: columns * rows of them, with four columns each
  int column_tiles;   // each of 4 columns
  int chunk;          // lines at a time: a multiple of rows
  int64_t lines_per_block;
  int64_t lines;  // images * column_tiles * N, numbered strip by strip

  LIBRA_HOST_DEVICE int threads() const { return (columns * rows + 31) / 32 * 32; }
};

inline IouPlan plan_iou(int64_t batch, int64_t n, int64_t m, GpuSize gpu, int resident_threads) {
  const int64_t groups = (m + 3) / 4;
  const int64_t fewest = (groups + kIouThreads - 1) / kIouThreads;
  IouPlan plan{};
  double best = 0;  // the share of the threads that work
  for (int64_t tiles = fewest; tiles < fewest + 8 && tiles <= groups; ++tiles) {
    IouPlan next{};
    next.columns = static_cast<int>((groups + tiles - 1) / tiles);
    next.rows = kIouThreads / next.columns;
    next.column_tiles = static_cast<int>((groups + next.columns - 1) / next.columns);
    const double share = static_cast<double>(groups) * next.rows / next.column_tiles / next.threads();
    if (share > best + 0.03) {
      best = share;
      plan = next;
    }
  }
  plan.chunk = kIouChunk / plan.rows * plan.rows;
  plan.lines = batch * plan.column_tiles * n;
  const int per_multiprocessor =
      (resident_threads < gpu.threads_per_multiprocessor ? resident_threads : gpu.threads_per_multiprocessor) /
      plan.threads();
  const int64_t blocks = static_cast<int64_t>(gpu.multiprocessors) * (per_multiprocessor > 1 ? per_multiprocessor : 1);
  const int64_t each = (plan.lines + blocks - 1) / blocks;
  plan.lines_per_block = (each + plan.rows - 1) / plan.rows * plan.rows;
  return plan;
}

// A run of lines of one strip.
struct IouChunk {
  int64_t image, row, column;
  int count;
};

LIBRA_HOST_DEVICE IouChunk iou_chunk(const IouPlan& plan, int64_t line, int64_t end, int64_t n) {
  const int64_t strip = line / n, row = line % n;
  int64_t count = n - row < end - line ? n - row : end - line;
  if (count > plan.chunk) count = plan.chunk;
  return {strip / plan.column_tiles, row, strip % plan.column_tiles * 4 * plan.columns, static_cast<int>(count)};
}

// 16-byte accesses: one for a box of float, two for one of double.
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

// Not to be kept in the cache: a matrix is larger than it, or nearly.
__device__ __forceinline__ void store_results(float* to, const float (&results)[4]) {
  __stcs(reinterpret_cast<float4*>(to), make_float4(results[0], results[1], results[2], results[3]));
}
__device__ __forceinline__ void store_results(double* to, const double (&results)[4]) {
  __stcs(reinterpret_cast<double2*>(to), make_double2(results[0], results[1]));
  __stcs(reinterpret_cast<double2*>(to) + 1, make_double2(results[2], results[3]));
}

template <class T>
struct alignas(16) SharedSide {
  Side<T> side;
};

// Does the pairs with a box that is not plain again. Out of the hot code: double arithmetic takes many registers.
template <Kind kind, class T>
__device__ __noinline__ void mend_lines(const T* boxes1, const T* boxes2, T* out, IouPlan plan, int64_t begin,
                                        int64_t end, int64_t n, int64_t m) {
  const int width = 4 * plan.columns;
  IouChunk chunk;
  for (int64_t line = begin; line < end; line += chunk.count) {
    chunk = iou_chunk(plan, line, end, n);
    for (int i = threadIdx.x; i < chunk.count * width; i += blockDim.x) {
      const int64_t row = chunk.image * n + chunk.row + i / width, column = chunk.column + i % width;
      if (column >= m) continue;
      const Box<T> a = load_box(boxes1, row), b = load_box(boxes2, chunk.image * m + column);
      if (is_plain(a) && is_plain(b)) continue;
      out[row * m + column] =
          is_huge(a) || is_huge(b) ? overlap_huge<kind>(a, b) : overlap<kind>(make_side<kind>(a), make_side<kind>(b));
    }
  }
}

// grid [blocks], block [plan.threads()]. boxes1 [B, N, 4], boxes2 [B, M, 4], 16-byte aligned -> out [B, N, M].
// kAligned: M is a multiple of 4, so that a thread's four neighbouring results are one 16-byte store; otherwise its
// columns lie plan.columns apart, and a warp's stores are neighbours.
template <Kind kind, bool kAligned, class T>
__global__ void __launch_bounds__(kIouThreads, kIouBlocks<kind, kAligned, T>)
    box_iou_kernel(const T* __restrict__ boxes1, const T* __restrict__ boxes2, T* __restrict__ out, IouPlan plan,
                   int64_t n, int64_t m) {
  SHARED(SharedSide<T>, rows, [kIouChunk]);
  const int column_thread = threadIdx.x % plan.columns, row_thread = threadIdx.x / plan.columns;
  const int step = kAligned ? 1 : plan.columns;
  const int64_t begin = blockIdx.x * plan.lines_per_block;
  const int64_t end = begin + plan.lines_per_block < plan.lines ? begin + plan.lines_per_block : plan.lines;
  Side<T> columns[4];
  bool exists[4] = {}, plain = true;
  IouChunk chunk;
  for (int64_t line = begin; line < end; line += chunk.count) {
    chunk = iou_chunk(plan, line, end, n);
    const int64_t first = chunk.column + column_thread * (kAligned ? 4 : 1);
    if (line == begin || chunk.row == 0) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int64_t column = first + k * step;
        exists[k] = column < m;
        const Box<T> box = exists[k] ? load_box(boxes2, chunk.image * m + column) : Box<T>{T(0), T(0), T(0), T(0)};
        columns[k] = make_side<kind>(box);
        plain = plain && is_plain(box);
      }
    }
    for (int i = threadIdx.x; i < chunk.count; i += blockDim.x) {
      const Box<T> box = load_box(boxes1, chunk.image * n + chunk.row + i);
      rows[i].side = make_side<kind>(box);
      plain = plain && is_plain(box);
    }
    __syncthreads();
    if (row_thread < plan.rows) {
      T* results_of_row = out + (chunk.image * n + chunk.row + row_thread) * m + first;
      for (int row = row_thread; row < chunk.count; row += plan.rows, results_of_row += plan.rows * m) {
        const Side<T> side = rows[row].side;
        T results[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) results[k] = overlap<kind, PlainDivision>(side, columns[k]);
        if constexpr (kAligned) {
          if (exists[0]) store_results(results_of_row, results);
        } else {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            if (exists[k]) results_of_row[k * step] = results[k];
          }
        }
      }
    }
    __syncthreads();  // before the next chunk's rows
  }
  if (!__syncthreads_and(plain)) mend_lines<kind>(boxes1, boxes2, out, plan, begin, end, n, m);
}

// boxes1 [B, N, 4], boxes2 [B, M, 4], out [B, N, M]: contiguous and 16-byte aligned.
template <class T>
cudaError_t launch_box_iou(Kind kind, const T* boxes1, const T* boxes2, T* out, int64_t batch, int64_t n, int64_t m,
                           GpuSize gpu, cudaStream_t stream) {
  if (batch == 0 || n == 0 || m == 0) return cudaSuccess;
  return with_kind(kind, [&](auto chosen) {
    constexpr Kind kKind = decltype(chosen)::value;
    const bool aligned = m % 4 == 0;
    const IouPlan plan =
        plan_iou(batch, n, m, gpu, aligned ? kIouResident<kKind, true, T> : kIouResident<kKind, false, T>);
    const int64_t blocks = (plan.lines + plan.lines_per_block - 1) / plan.lines_per_block;
    return launch(aligned ? box_iou_kernel<kKind, true, T> : box_iou_kernel<kKind, false, T>,
                  dim3(static_cast<unsigned>(blocks)), dim3(plan.threads()), 0, stream, boxes1, boxes2, out, plan, n,
                  m);
  });
}

}  // namespace libra
