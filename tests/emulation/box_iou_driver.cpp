// The GPU's box_iou and its backward in the emulation: the launch functions of box_iou_cuda.cu, for float and double.
#include "box_iou/box_iou_backward_kernel.cuh"
#include "box_iou/box_iou_kernel.cuh"

namespace {

template <class T>
int forward(const T* boxes1, const T* boxes2, T* out, int64_t batch, int64_t n, int64_t m, int64_t kind,
            int64_t multiprocessors) {
  return libra::launch_box_iou<T>(static_cast<libra::Kind>(kind), boxes1, boxes2, out, batch, n, m,
                                  {static_cast<int>(multiprocessors), 2048}, nullptr);
}

template <class T>
int backward(const T* gradient, const T* boxes1, const T* boxes2, T* grad1, T* grad2, T* partial1, T* partial2,
             int64_t batch, int64_t n, int64_t m, int64_t kind) {
  return libra::launch_box_iou_backward<T>(static_cast<libra::Kind>(kind), gradient, boxes1, boxes2, grad1, grad2,
                                           partial1, partial2, batch, n, m, nullptr);
}

}  // namespace

extern "C" int run_box_iou_float(const float* boxes1, const float* boxes2, float* out, int64_t batch, int64_t n,
                                 int64_t m, int64_t kind, int64_t multiprocessors) {
  return forward(boxes1, boxes2, out, batch, n, m, kind, multiprocessors);
}

extern "C" int run_box_iou_double(const double* boxes1, const double* boxes2, double* out, int64_t batch, int64_t n,
                                  int64_t m, int64_t kind, int64_t multiprocessors) {
  return forward(boxes1, boxes2, out, batch, n, m, kind, multiprocessors);
}

extern "C" int run_box_iou_backward_float(const float* gradient, const float* boxes1, const float* boxes2, float* grad1,
                                          float* grad2, float* partial1, float* partial2, int64_t batch, int64_t n,
                                          int64_t m, int64_t kind) {
  return backward(gradient, boxes1, boxes2, grad1, grad2, partial1, partial2, batch, n, m, kind);
}

extern "C" int run_box_iou_backward_double(const double* gradient, const double* boxes1, const double* boxes2,
                                           double* grad1, double* grad2, double* partial1, double* partial2,
                                           int64_t batch, int64_t n, int64_t m, int64_t kind) {
  return backward(gradient, boxes1, boxes2, grad1, grad2, partial1, partial2, batch, n, m, kind);
}

// Boxes of partial sums that the backward takes: [grad1's, grad2's].
extern "C" int slope_partials(int64_t* boxes, int64_t batch, int64_t n, int64_t m, int64_t bytes_per_number) {
  const libra::SlopePlan plan =
      bytes_per_number == 4 ? libra::plan_slopes<float>(batch, n, m) : libra::plan_slopes<double>(batch, n, m);
  boxes[0] = libra::slope_partials1(plan, batch, n);
  boxes[1] = libra::slope_partials2(plan, batch, m);
  return 0;
}

// Where a line of the forward lies, with 132 multiprocessors: image, row and column, and the share of threads at work.
extern "C" int run_iou_line(int64_t* place, double* share, int64_t line, int64_t batch, int64_t n, int64_t m) {
  const libra::IouPlan plan = libra::plan_iou(batch, n, m, {132, 2048}, 1280);
  const libra::IouChunk chunk = libra::iou_chunk(plan, line < 0 ? plan.lines + line : line, plan.lines, n);
  place[0] = chunk.image;
  place[1] = chunk.row;
  place[2] = chunk.column;
  *share = static_cast<double>((m + 3) / 4) * plan.rows / plan.column_tiles / plan.threads();
  return 0;
}
