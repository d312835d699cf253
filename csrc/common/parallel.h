// How a CPU kernel, which knows no torch, is given threads: whoever calls it brings a function that shares out a loop.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace libra {

// f(begin, end) on parts of [0, n) of at least `grain` elements, whichever thread takes them; returns when all are
// done.
struct LoopBody {
  const void* function;
  void (*call)(const void* function, int64_t begin, int64_t end);
};
using ParallelFor = void (*)(int64_t n, int64_t grain, LoopBody body);

template <class F>
void parallel_for(ParallelFor threads, int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  threads(n, grain, {&f, [](const void* function, int64_t begin, int64_t end) {
                       (*static_cast<const F*>(function))(begin, end);
                     }});
}

// The sum of f(begin, end) over the chunks of [0, n), added in their order: the same for every number of threads.
template <class F>
double sum_chunks(ParallelFor threads, int64_t n, int64_t chunk, int64_t grain, const F& f) {
  std::vector<double> sums((n + chunk - 1) / chunk);
  parallel_for(threads, static_cast<int64_t>(sums.size()), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sums[i] = f(i * chunk, std::min(n, (i + 1) * chunk));
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

inline void one_thread(int64_t n, int64_t, LoopBody body) { body.call(body.function, 0, n); }

}  // namespace libra
