// What launch_ticket.h asks of CUDA, for launch_ticket_driver.cpp: a stream that says what it is told to.
#pragma once

#include "emulation.h"

enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };

struct CUstream_st {
  unsigned long long id;
  cudaStreamCaptureStatus status;
  cudaError_t error;
};

inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream->status;
  return stream->error;
}

inline cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  *id = stream->id;
  return stream->error;
}
