// How a CPU kernel, which knows no torch, is given threads: whoever calls it brings a function that shares out a loop.
#pragma once

#include <cstdint>

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

inline void one_thread(int64_t n, int64_t, LoopBody body) { body.call(body.function, 0, n); }

}  // namespace libra
