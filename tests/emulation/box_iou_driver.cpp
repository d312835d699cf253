// The GPU's box_iou and its backward in the emulation: the launch functions of box_iou_cuda.cu, for float and double.
#include "box_iou/box_iou_kernel.cuh"

extern "C" int run_box_iou_float(const float* boxes1, const float* boxes2, float* out, int64_t batch, int64_t n,
                                 int64_t m, int64_t kind) {
  return libra::launch_box_iou<float>(static_cast<libra::Kind>(kind), boxes1, boxes2, out, batch, n, m, nullptr);
}

extern "C" int run_box_iou_double(const double* boxes1, const double* boxes2, double* out, int64_t batch, int64_t n,
                                  int64_t m, int64_t kind) {
  return libra::launch_box_iou<double>(static_cast<libra::Kind>(kind), boxes1, boxes2, out, batch, n, m, nullptr);
}

extern "C" int run_box_iou_backward_float(const float* gradient, const float* boxes1, const float* boxes2, float* grad1,
                                          float* grad2, int64_t batch, int64_t n, int64_t m, int64_t kind) {
  return libra::launch_box_iou_backward<float>(static_cast<libra::Kind>(kind), gradient, boxes1, boxes2, grad1, grad2,
                                               batch, n, m, nullptr);
}

extern "C" int run_box_iou_backward_double(const double* gradient, const double* boxes1, const double* boxes2,
                                           double* grad1, double* grad2, int64_t batch, int64_t n, int64_t m,
                                           int64_t kind) {
  return libra::launch_box_iou_backward<double>(static_cast<libra::Kind>(kind), gradient, boxes1, boxes2, grad1, grad2,
                                                batch, n, m, nullptr);
}

// Where a tile begins: image, row and column.
extern "C" int run_iou_tile(int64_t* place, int64_t tile, int64_t n, int64_t m) {
  const libra::IouTile begin = libra::iou_tile(tile, n, m);
  place[0] = begin.image;
  place[1] = begin.row;
  place[2] = begin.column;
  return 0;
}
