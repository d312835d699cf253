// Which counter a launch may use whose last block has to know that it is the last.
//
// A counter is zero before and after each launch that uses it, so launches may share one only if they never run at the
// same time: those of one stream may, and so may the replays of one captured launch. So every stream of a device has
// its own, and every launch that is captured gets one for good (its memory too belongs to the graph alone). None of
// this asks the device for anything.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <map>
#include <mutex>
#include <utility>

namespace libra {

class LaunchTickets {
 public:
  explicit LaunchTickets(int count) : count_(count) {}

  // A number in [0, count), or -1 where none is left or the stream does not say: the caller then clears its own
  // counter.
  int take(int device, cudaStream_t stream) {
    cudaStreamCaptureStatus status;
    unsigned long long id;
    if (cudaStreamIsCapturing(stream, &status) != cudaSuccess) {
      cudaGetLastError();  // the launch that follows says it better
      return -1;
    }
    if (status != cudaStreamCaptureStatusNone) return next();
    if (cudaStreamGetId(stream, &id) != cudaSuccess) {
      cudaGetLastError();
      return -1;
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [place, is_new] = of_streams_.try_emplace({device, id}, -1);
    if (is_new) place->second = next();
    return place->second;
  }

 private:
  int next() {
    int taken = taken_.load();
    while (taken < count_ && !taken_.compare_exchange_weak(taken, taken + 1)) {
    }
    return taken < count_ ? taken : -1;
  }

  const int count_;
  std::atomic<int> taken_{0};
  std::mutex mutex_;
  std::map<std::pair<int, unsigned long long>, int> of_streams_;  // a stream's id is never given to another
};

}  // namespace libra
