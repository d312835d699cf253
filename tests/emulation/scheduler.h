// What the parts of the emulation share: the threads of the block that runs, giving up, and the clock of races.cpp.
#pragma once

#include <string>

#include "emulation.h"
#include "fiber.h"

struct sigaction;

namespace emulation {

constexpr int kMaxThreads = 1024;

enum class State : uint8_t { kReady, kAtBarrier, kAtWarpOperation, kReturned };

struct Thread {
  State state;
  Fiber* fiber;  // none before the thread first runs
  uint3 index;
  Place place;  // of the last barrier or warp operation it called
  WarpKind kind;
  unsigned mask;
  int source_lane;
  uint64_t value, result;
};

// Of the block that runs; threads are numbered by their linear index.
extern Thread threads[kMaxThreads];
extern int thread_count, live_count;
extern int current;                          // thread that runs, -1 on the host
extern unsigned returned[kMaxThreads / 32];  // a bit for each lane
extern std::string error;                    // of the launches since harness.py began; empty where all is well

void set_ready(int thread);
// The running thread waits in `state`, until set_ready and the order let it go on.
void wait(State state);
void go_to_host();

// failures.cpp. `fail` gives the launch up; in a CUDA thread it does not return: the fibers are dropped where they are.
// `program_counter`, where it is known, says which line of the kernel did it.
void fail(const std::string& what, const void* program_counter = nullptr);
void report_deadlock();
std::string text(uint3 index);
std::string text(Place place);
bool same(Place a, Place b);
struct SignalGuard {  // while it lives, a signal that a kernel raises becomes a failure
  SignalGuard();
  ~SignalGuard();
};

// warp_operations.cpp: a new block, in which no lane waits.
void begin_warps();

// races.cpp. Memory accesses of two threads are ordered by the end of a launch, by a barrier of their block, and within
// a warp by __syncwarp. Every other pair to one place, of which one is a store and not both are atomic, is a race.
void order_launch();
void order_block();
void order_barrier();
void order_warp(int warp);

}  // namespace emulation
