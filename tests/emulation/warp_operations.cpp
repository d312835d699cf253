// Warp operations: the lanes of a mask meet, and the last one to come works out every lane's result.
#include <algorithm>

#include "scheduler.h"

namespace emulation {
namespace {

unsigned at_warp_operation[kMaxThreads / 32];  // a bit for each lane

uint64_t reduced(WarpKind kind, const Thread* warp, unsigned mask) {
  uint64_t total = kind == WarpKind::kBallot ? 0 : warp[__builtin_ctz(mask)].value;
  for (unsigned rest = kind == WarpKind::kBallot ? mask : mask & (mask - 1); rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const uint64_t value = warp[lane].value;
    switch (kind) {
      case WarpKind::kBallot:
        total |= uint64_t(value != 0) << lane;
        break;
      case WarpKind::kReduceAdd:
        total += value;
        break;
      case WarpKind::kReduceMin:
        total = std::min(int64_t(total), int64_t(value));
        break;
      case WarpKind::kReduceMax:
        total = std::max(int64_t(total), int64_t(value));
        break;
      case WarpKind::kReduceAnd:
        total &= value;
        break;
      case WarpKind::kReduceOr:
        total |= value;
        break;
      default:
        break;
    }
  }
  return total;
}

// Fails where a lane is, or never will be, where `self` waits for it.
void check(const Thread& self, int own_lane, int first) {
  const unsigned mask = self.mask;
  if (!(mask >> own_lane & 1)) fail("a lane calls a warp operation with a mask that leaves it out");
  const unsigned missing = thread_count - first < 32 ? mask >> (thread_count - first) : 0;
  if (missing)
    fail("the mask names lane " + std::to_string(thread_count - first + __builtin_ctz(missing)) +
         ", which the block does not have");
  if (const unsigned gone = mask & returned[first / 32])
    fail("the mask names lane " + std::to_string(__builtin_ctz(gone)) + ", which has returned");
  if (const unsigned others = mask & at_warp_operation[first / 32]) {  // these have been compared with each other
    const int lane = __builtin_ctz(others);
    const Thread& other = threads[first + lane];
    if (other.kind != self.kind || other.mask != mask || !same(other.place, self.place))
      fail("lanes of one mask are in different warp operations, lane " + std::to_string(lane) + " at " +
           text(other.place));
  }
}

void give_results(Thread* warp, WarpKind kind, unsigned mask) {
  const bool per_lane = kind == WarpKind::kShuffle || kind == WarpKind::kMatchAny || kind == WarpKind::kSync;
  const uint64_t common = per_lane ? 0 : reduced(kind, warp, mask);
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    Thread& lane = warp[__builtin_ctz(rest)];
    lane.result = common;
    if (kind == WarpKind::kShuffle) {
      if (!(mask >> lane.source_lane & 1))
        fail("a shuffle reads lane " + std::to_string(lane.source_lane) + ", which is not in the mask");
      lane.result = warp[lane.source_lane].value;
    } else if (kind == WarpKind::kMatchAny) {
      for (unsigned other = mask; other; other &= other - 1)
        if (warp[__builtin_ctz(other)].value == lane.value) lane.result |= other & -other;
    }
  }
}

}  // namespace

void begin_warps() { std::fill(at_warp_operation, at_warp_operation + kMaxThreads / 32, 0); }

int lane() { return current % 32; }

uint64_t warp_operation(WarpKind kind, unsigned mask, uint64_t value, int source_lane, Place place) {
  const int own_lane = lane(), first = current - own_lane;
  Thread& self = threads[current];
  self.place = place;
  self.kind = kind;
  self.mask = mask;
  self.value = value;
  self.source_lane = source_lane;
  check(self, own_lane, first);
  unsigned& waiting = at_warp_operation[first / 32];
  waiting |= 1u << own_lane;
  if ((waiting & mask) != mask) {
    wait(State::kAtWarpOperation);
    return self.result;
  }
  waiting &= ~mask;
  if (kind == WarpKind::kSync) order_warp(first / 32);
  give_results(threads + first, kind, mask);
  for (unsigned rest = mask; rest; rest &= rest - 1) set_ready(first + __builtin_ctz(rest));
  go_to_host();  // the order says which of the lanes goes on first
  return self.result;
}

}  // namespace emulation
