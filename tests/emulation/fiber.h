// A stack of its own and where it was left: what a CUDA thread of the emulation runs on.
#pragma once

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

struct Fiber {
  char* stack;
#if defined(__x86_64__)
  void* stack_pointer;
#else
  ucontext_t context;
#endif
};

Fiber* new_fiber(void (*body)());
// `fiber` starts from the beginning of `body` when it is switched to next, wherever it was.
void restart_fiber(Fiber& fiber, void (*body)());
// Leaves `from`, the fiber that runs, and goes on in `to`. Comes back when someone switches to `from`.
void switch_fiber(Fiber& from, Fiber& to);

}  // namespace emulation
