// What both backends of box coding check and allocate. B images, N reference rows, G target rows, S slots, C classes.
#pragma once

#include <optional>
#include <vector>

#include "box_coding/box_coding_shape.h"
#include "common/allocate.h"
#include "common/tensor.h"

namespace libra {

// Contiguous, and aligned to a box of float32: a view may begin anywhere.
inline Tensor whole_rows(const Tensor& rows) { return make_contiguous(rows, 16); }

inline void check_rows(const Tensor& rows, const Tensor& like, int64_t dim, const char* name) {
  check_dtype(rows, like.scalar_type(), name);
  check_same_device(rows, like, name);
  check_dim(rows, dim, name);
  check_size(rows, dim - 1, 4, name);
}

inline std::optional<Tensor> check_index(const std::optional<Tensor>& index, const Tensor& like, const char* name) {
  if (!index) return std::nullopt;
  check_dtype(*index, ScalarType::Long, name);
  check_same_device(*index, like, name);
  check_dim(*index, 2, name);
  check_size(*index, 0, like.size(0), name);
  return make_contiguous(*index);
}

template <class T>
Four<T> make_stds(const std::vector<double>& stds) {
  return {static_cast<T>(stds[0]), static_cast<T>(stds[1]), static_cast<T>(stds[2]), static_cast<T>(stds[3])};
}

inline void check_elements(int64_t elements) {
  STD_TORCH_CHECK(elements <= kMaxElements, "index: expected at most 2^31 boxes in an image, got ", elements);
}

inline void check_stds(const std::vector<double>& stds) {
  STD_TORCH_CHECK(stds.size() == 4, "delta_stds: expected 4 numbers, got ", stds.size());
}

struct EncodeArguments {
  Tensor references, targets;  // contiguous [N, 4] or [B, N, 4], and [B, G, 4]
  std::optional<Tensor> index, target_index;
  std::vector<double> stds;
  int64_t slots;

  static EncodeArguments check(const Tensor& references, const Tensor& targets, const std::optional<Tensor>& index,
                               const std::optional<Tensor>& target_index, const std::vector<double>& stds) {
    check_floating(targets, "targets");
    check_rows(targets, targets, 3, "targets");
    check_rows(references, targets, references.dim() == 2 ? 2 : 3, "references");
    if (references.dim() == 3) check_size(references, 0, targets.size(0), "references");
    check_stds(stds);
    EncodeArguments a{whole_rows(references),
                      whole_rows(targets),
                      check_index(index, targets, "index"),
                      check_index(target_index, targets, "target_index"),
                      stds,
                      index ? index->size(1) : references.size(references.dim() - 2)};
    const int64_t target_slots = target_index ? target_index->size(1) : targets.size(1);
    STD_TORCH_CHECK(target_slots == a.slots, "targets: expected ", a.slots, " slots like references, got ",
                    target_slots);
    check_elements(a.slots);
    return a;
  }

  // [B, S, 4], not filled
  Tensor output() const { return make_empty(targets, {targets.size(0), slots, 4}); }

  template <class T>
  EncodeTensors<T> tensors(Tensor& deltas) const {
    return {read<Four<T>>(references),
            read<Four<T>>(targets),
            index ? read<int64_t>(*index) : nullptr,
            target_index ? read<int64_t>(*target_index) : nullptr,
            write<Four<T>>(deltas),
            targets.size(0),
            references.size(references.dim() - 2),
            targets.size(1),
            slots,
            references.dim() == 2,
            make_stds<T>(stds)};
  }
};

struct DecodeArguments {
  Tensor references, deltas;  // contiguous [N, 4] or [B, N, 4], and [B, N, C, 4]
  std::optional<Tensor> index, sizes;
  std::vector<double> stds;
  int64_t slots;

  static DecodeArguments check(const Tensor& references, const Tensor& deltas, const std::optional<Tensor>& index,
                               const std::vector<double>& stds, const std::optional<Tensor>& sizes) {
    check_floating(deltas, "deltas");
    check_rows(deltas, deltas, 4, "deltas");
    check_rows(references, deltas, references.dim() == 2 ? 2 : 3, "references");
    if (references.dim() == 3) check_size(references, 0, deltas.size(0), "references");
    check_size(references, references.dim() - 2, deltas.size(1), "references");
    check_stds(stds);
    DecodeArguments a{whole_rows(references),
                      whole_rows(deltas),
                      check_index(index, deltas, "index"),
                      std::nullopt,
                      stds,
                      index ? index->size(1) : deltas.size(1)};
    check_elements(a.slots * deltas.size(2));
    if (sizes) {
      check_dtype(*sizes, deltas.scalar_type(), "sizes");
      check_same_device(*sizes, deltas, "sizes");
      check_dim(*sizes, 2, "sizes");
      check_size(*sizes, 0, deltas.size(0), "sizes");
      check_size(*sizes, 1, 2, "sizes");
      a.sizes = make_contiguous(*sizes);
    }
    return a;
  }

  // [B, S, C, 4], not filled
  Tensor output() const { return make_empty(deltas, {deltas.size(0), slots, deltas.size(2), 4}); }

  template <class T>
  DecodeTensors<T> tensors(Tensor& boxes) const {
    return {read<Four<T>>(references),
            read<Four<T>>(deltas),
            index ? read<int64_t>(*index) : nullptr,
            sizes ? read<T>(*sizes) : nullptr,
            write<Four<T>>(boxes),
            deltas.size(0),
            deltas.size(1),
            slots,
            deltas.size(2),
            references.dim() == 2,
            make_stds<T>(stds)};
  }
};

struct DecodeGradientArguments {
  DecodeArguments forward;      // of all rows
  Tensor gradient;              // contiguous [B, S, C, 4]
  std::optional<Tensor> index;  // contiguous [B, S], rising

  static DecodeGradientArguments check(const Tensor& gradient, const Tensor& references, const Tensor& deltas,
                                       const std::optional<Tensor>& index, const std::vector<double>& stds,
                                       const std::optional<Tensor>& sizes) {
    const auto forward = DecodeArguments::check(references, deltas, std::nullopt, stds, sizes);
    const auto own = check_index(index, deltas, "index");
    check_rows(gradient, deltas, 4, "grad");
    check_size(gradient, 0, deltas.size(0), "grad");
    check_size(gradient, 1, own ? own->size(1) : deltas.size(1), "grad");
    check_size(gradient, 2, deltas.size(2), "grad");
    return {forward, whole_rows(gradient), own};
  }

  template <class T>
  SlotGradients<T> gradients() const {
    return {read<Four<T>>(gradient), index ? read<int64_t>(*index) : nullptr, gradient.size(1), gradient.size(2)};
  }
};

}  // namespace libra
