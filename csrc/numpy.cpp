// libra_ops._numpy: the CPU kernels on NumPy arrays, without a copy and without torch.
//
// libra_ops/numpy.py checks the arguments and says what is wrong with them; it hands over C-contiguous, aligned arrays
// of the kernels' own dtypes, which pybind11 insists on (noconvert). What is checked here is the last line before
// memory: that the sizes agree. The GIL is released while a kernel runs.
//
// Threads begin and end with a call. A pool would not live on in the workers that a data loader forks, and a job that
// is worth a thread lasts a hundred times longer than starting one (some 20 us).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <tuple>
#include <vector>

#include "box_iou/box_iou_cpu_kernel.h"
#include "match_boxes/match_boxes_cpu_kernel.h"
#include "sample_iou_balanced/sample_iou_balanced_cpu_kernel.h"

namespace libra {
namespace {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

thread_local int64_t threads_of_this_call = 1;

// A ParallelFor: equal parts, one thread each. An exception of a part is thrown again once all parts have ended.
void own_threads(int64_t n, int64_t grain, LoopBody body) {
  const int64_t parts = std::min(threads_of_this_call, n / std::max<int64_t>(1, grain));
  if (parts <= 1) return body.call(body.function, 0, n);
  std::vector<std::exception_ptr> errors(parts);
  const auto begin_of = [&](int64_t part) { return n / parts * part + std::min(part, n % parts); };
  const auto run = [&](int64_t part) {
    try {
      body.call(body.function, begin_of(part), begin_of(part + 1));
    } catch (...) {
      errors[part] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(parts - 1);
  try {
    while (static_cast<int64_t>(others.size()) < parts - 1) others.emplace_back(run, others.size() + 1);
  } catch (...) {
    // The system gives no more threads: what is left runs on this one.
  }
  run(0);
  for (int64_t part = others.size() + 1; part < parts; ++part) run(part);
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

// Runs a kernel without the GIL, on up to so many threads, unless there is nothing to write: of images without boxes
// there can be 2^60.
template <class F>
void run_kernel(const py::array& result, int64_t threads, const F& kernel) {
  if (result.size() == 0) return;
  py::gil_scoped_release release;
  threads_of_this_call = threads;
  kernel();
}

void expect(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("libra_ops._numpy: expected ") + what);
}

template <class T>
const Box<T>* boxes_of(const Array<T>& array) {
  return reinterpret_cast<const Box<T>*>(array.data());
}

template <class T>
bool holds_boxes(const Array<T>& array) {
  return array.ndim() >= 2 && array.shape(array.ndim() - 1) == 4;
}

template <class T>
Array<T> box_iou_numpy(const Array<T>& boxes1, const Array<T>& boxes2, int64_t kind, int64_t threads) {
  expect(boxes1.ndim() == 3 && boxes2.ndim() == 3 && holds_boxes(boxes1) && holds_boxes(boxes2), "[B, N, 4] boxes");
  expect(boxes1.shape(0) == boxes2.shape(0), "one batch size");
  expect(kind >= 0 && kind <= 4, "kind 0 to 4");
  const int64_t batch = boxes1.shape(0), n = boxes1.shape(1), m = boxes2.shape(1);
  Array<T> overlaps({batch, n, m});
  T* out = overlaps.mutable_data();
  run_kernel(overlaps, threads, [&] {
    box_iou(static_cast<Kind>(kind), boxes_of(boxes1), boxes_of(boxes2), out, batch, n, m, own_threads);
  });
  return overlaps;
}

std::tuple<Array<int64_t>, Array<float>, Array<signed char>> match_boxes_numpy(
    const Array<float>& boxes, const Array<float>& targets, const Array<bool>& valid,
    const std::optional<Array<float>>& crowd, double positive_iou, double negative_iou,
    std::optional<double> min_positive_iou, int64_t threads) {
  expect(targets.ndim() == 3 && holds_boxes(targets) && targets.shape(1) <= INT32_MAX, "targets [B, G, 4]");
  const int64_t batch = targets.shape(0), count = targets.shape(1);
  const bool shared = boxes.ndim() == 2;
  expect((shared || boxes.ndim() == 3) && holds_boxes(boxes) && (shared || boxes.shape(0) == batch),
         "boxes [B, N, 4] or [N, 4]");
  expect(valid.ndim() == 2 && valid.shape(0) == batch && valid.shape(1) == count, "valid [B, G]");
  expect(!crowd || (crowd->ndim() == 3 && holds_boxes(*crowd) && crowd->shape(0) == batch), "crowd [B, C, 4]");
  const int64_t n = boxes.shape(boxes.ndim() - 2);
  Array<int64_t> index({batch, n});
  Array<float> iou({batch, n});
  Array<signed char> state({batch, n});
  const MatchInputs inputs{boxes_of(boxes),
                           boxes_of(targets),
                           reinterpret_cast<const uint8_t*>(valid.data()),
                           crowd ? boxes_of(*crowd) : nullptr,
                           batch,
                           n,
                           count,
                           crowd ? static_cast<int64_t>(crowd->shape(1)) : 0,
                           shared,
                           {static_cast<float>(positive_iou), static_cast<float>(negative_iou),
                            static_cast<float>(min_positive_iou.value_or(0)), min_positive_iou.has_value()}};
  const MatchResults results{index.mutable_data(), iou.mutable_data(), state.mutable_data()};
  run_kernel(index, threads, [&] { match_boxes(inputs, results, own_threads); });
  return {index, iou, state};
}

std::tuple<Array<int64_t>, Array<bool>, Array<bool>> sample_iou_balanced_numpy(
    const Array<int64_t>& index, const Array<float>& iou, const Array<signed char>& state, int64_t seed,
    int64_t num_samples, int64_t max_positives, int64_t num_bins, double low, double high,
    std::optional<double> max_negatives_per_positive, bool instance_balanced, bool published, int64_t threads) {
  expect(index.ndim() == 2 && index.shape(0) <= INT32_MAX && index.shape(1) <= kMaxCandidates, "index [B, N]");
  const int64_t images = index.shape(0), candidates = index.shape(1);
  expect(iou.ndim() == 2 && iou.shape(0) == images && iou.shape(1) == candidates, "iou like index");
  expect(state.ndim() == 2 && state.shape(0) == images && state.shape(1) == candidates, "state like index");
  expect(num_samples >= 0 && num_samples <= kMaxCandidates, "num_samples 0 to 2^30");
  expect(max_positives >= 0 && max_positives <= num_samples, "max_positives 0 to num_samples");
  expect(num_bins >= 1 && num_bins <= kMaxBins && low < high, "1 to 64 bins of an interval");
  Array<int64_t> samples({images, num_samples});
  Array<bool> valid({images, num_samples}), positive({images, num_samples});
  const SampleInputs inputs{index.data(), iou.data(), state.data(), static_cast<uint64_t>(seed), images, candidates};
  const SampleOptions options{static_cast<int>(num_samples),
                              static_cast<int>(max_positives),
                              static_cast<int>(num_bins),
                              low,
                              high,
                              max_negatives_per_positive.value_or(-1),
                              instance_balanced,
                              published};
  const SampleResults results{samples.mutable_data(), valid.mutable_data(), positive.mutable_data()};
  run_kernel(samples, threads, [&] { sample_iou_balanced(inputs, options, results, own_threads); });
  return {samples, valid, positive};
}

}  // namespace
}  // namespace libra

PYBIND11_MODULE(_numpy, m) {
  using pybind11::arg;
  const auto as_it_is = [](const char* name) { return arg(name).noconvert(); };
  m.def("box_iou", &libra::box_iou_numpy<float>, as_it_is("boxes1"), as_it_is("boxes2"), arg("kind"), arg("threads"));
  m.def("box_iou", &libra::box_iou_numpy<double>, as_it_is("boxes1"), as_it_is("boxes2"), arg("kind"), arg("threads"));
  m.def("match_boxes", &libra::match_boxes_numpy, as_it_is("boxes"), as_it_is("targets"), as_it_is("valid"),
        as_it_is("crowd").none(true), arg("positive_iou"), arg("negative_iou"), arg("min_positive_iou"),
        arg("threads"));
  m.def("sample_iou_balanced", &libra::sample_iou_balanced_numpy, as_it_is("index"), as_it_is("iou"), as_it_is("state"),
        arg("seed"), arg("num_samples"), arg("max_positives"), arg("num_bins"), arg("low"), arg("high"),
        arg("max_negatives_per_positive"), arg("instance_balanced"), arg("published"), arg("threads"));
}
