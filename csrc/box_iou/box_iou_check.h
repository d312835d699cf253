// What both backends of box_iou check and allocate.
#pragma once

#include <tuple>

#include "box_iou/box_iou_math.h"
#include "common/allocate.h"
#include "common/tensor.h"

namespace libra {

struct BoxIouArguments {
  Tensor boxes1, boxes2;  // [B, N, 4], [B, M, 4]: contiguous, of one dtype
  Kind kind;
  int64_t batch, n, m;

  static BoxIouArguments check(const Tensor& boxes1, const Tensor& boxes2, int64_t kind) {
    check_floating(boxes1, "boxes1");
    check_dtype(boxes2, boxes1.scalar_type(), "boxes2");
    check_same_device(boxes2, boxes1, "boxes2");
    check_dim(boxes1, 3, "boxes1");
    check_dim(boxes2, 3, "boxes2");
    check_size(boxes2, 0, boxes1.size(0), "boxes2");
    check_size(boxes1, 2, 4, "boxes1");
    check_size(boxes2, 2, 4, "boxes2");
    STD_TORCH_CHECK(kind >= 0 && kind <= 4, "kind: expected 0 iou, 1 iof, 2 giou, 3 diou or 4 ciou, got ", kind);
    return {whole(boxes1), whole(boxes2), static_cast<Kind>(kind), boxes1.size(0), boxes1.size(1), boxes2.size(1)};
  }

  // [B, N, M] of d loss / d overlap
  Tensor check_gradient(const Tensor& gradient) const {
    check_dtype(gradient, boxes1.scalar_type(), "grad");
    check_same_device(gradient, boxes1, "grad");
    check_dim(gradient, 3, "grad");
    check_size(gradient, 0, batch, "grad");
    check_size(gradient, 1, n, "grad");
    check_size(gradient, 2, m, "grad");
    return make_contiguous(gradient);
  }

 private:
  // Contiguous, and aligned to a box of float32: a view may begin anywhere.
  static Tensor whole(const Tensor& boxes) {
    Tensor whole = make_contiguous(boxes);
    return reinterpret_cast<uintptr_t>(whole.const_data_ptr()) % 16 ? torch::stable::clone(whole) : whole;
  }
};

}  // namespace libra
