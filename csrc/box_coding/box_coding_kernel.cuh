// Box coding on the GPU; no torch headers. A thread makes one element: 16-byte loads of what the index chose, one
// 16-byte store, in the order of the results. Offsets are int64.
#pragma once

#include "box_coding/box_coding_shape.h"

namespace libra {

constexpr int kCodingThreads = 256;

template <class T>
__device__ __forceinline__ Four<T> load_four(const Four<T>* from) {
  struct __align__(16) Aligned {
    Four<T> four;
  };
  return reinterpret_cast<const Aligned*>(from)->four;
}

template <class T>
__device__ __forceinline__ void store_four(Four<T>* to, const Four<T>& four) {
  struct __align__(16) Aligned {
    Four<T> four;
  };
  *reinterpret_cast<Aligned*>(to) = {four};
}

template <class T>
__device__ __forceinline__ Four<T> not_a_box() {
  const T nan = static_cast<T>(NAN);
  return {nan, nan, nan, nan};
}

// A thread's element: blocks belong to one image each.
struct CodingElement {
  int64_t image, place;  // place: in the results
  uint32_t element;      // of the image
  bool beyond;

  __device__ __forceinline__ explicit CodingElement(int64_t elements) {
    const uint32_t blocks = static_cast<uint32_t>((elements + kCodingThreads - 1) / kCodingThreads);
    image = blockIdx.x / blocks;
    element = blockIdx.x % blocks * kCodingThreads + threadIdx.x;
    beyond = element >= elements;
    place = image * elements + element;
  }
};

template <class T>
__global__ void __launch_bounds__(kCodingThreads) encode_kernel(const __grid_constant__ EncodeTensors<T> tensors) {
  const CodingElement here(tensors.elements());
  if (here.beyond) return;
  int64_t reference, target;
  const bool found = tensors.find(here.image, here.element, reference, target);
  store_four(tensors.deltas + here.place, found ? encode_box(load_four(tensors.references + reference),
                                                             load_four(tensors.targets + target), tensors.stds)
                                                : not_a_box<T>());
}

template <class T>
__global__ void __launch_bounds__(kCodingThreads) decode_kernel(const __grid_constant__ DecodeTensors<T> tensors) {
  const CodingElement here(tensors.elements());
  if (here.beyond) return;
  int64_t reference, delta;
  const bool found = tensors.find(here.image, here.element, reference, delta);
  store_four(tensors.boxes + here.place,
             found ? decode_box(load_four(tensors.references + reference), load_four(tensors.deltas + delta),
                                tensors.stds, tensors.limits(here.image))
                   : not_a_box<T>());
}

template <class T>
__global__ void __launch_bounds__(kCodingThreads)
    decode_backward_kernel(const __grid_constant__ SlotGradients<T> gradients,
                           const __grid_constant__ DecodeTensors<T> tensors) {
  const CodingElement here(tensors.elements());
  if (here.beyond) return;
  int64_t reference, delta;
  tensors.find(here.image, here.element, reference, delta);
  Four<T> gradient;
  const auto load = [](const Four<T>* from) { return load_four(from); };
  const bool chosen = gradients.sum(here.image, here.element, load, gradient);
  store_four(tensors.boxes + here.place,
             chosen ? decode_box_backward(gradient, load_four(tensors.references + reference),
                                          load_four(tensors.deltas + delta), tensors.stds, tensors.limits(here.image))
                    : Four<T>{});
}

inline int64_t coding_blocks(int64_t images, int64_t elements) {
  return images * ((elements + kCodingThreads - 1) / kCodingThreads);
}

// The three launches take any number of elements that is no more than 2^31 - 1 blocks, 0 too; all pointers to rows are
// multiples of 16.
template <class... Parameters, class... Arguments>
cudaError_t launch_coding(void (*kernel)(Parameters...), int64_t images, int64_t elements, cudaStream_t stream,
                          const Arguments&... arguments) {
  const int64_t blocks = coding_blocks(images, elements);
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kCodingThreads), 0, stream, arguments...);
}

template <class T>
cudaError_t launch_encode_boxes(const EncodeTensors<T>& tensors, cudaStream_t stream) {
  return launch_coding(encode_kernel<T>, tensors.images, tensors.elements(), stream, tensors);
}

template <class T>
cudaError_t launch_decode_boxes(const DecodeTensors<T>& tensors, cudaStream_t stream) {
  return launch_coding(decode_kernel<T>, tensors.images, tensors.elements(), stream, tensors);
}

template <class T>
cudaError_t launch_decode_boxes_backward(const SlotGradients<T>& gradients, const DecodeTensors<T>& tensors,
                                         cudaStream_t stream) {
  return launch_coding(decode_backward_kernel<T>, tensors.images, tensors.elements(), stream, gradients, tensors);
}

}  // namespace libra
