// LaunchTickets, asked on the CPU for streams of the test's making.
#include "common/launch_ticket.h"

const char* emulation::last_error() { return ""; }  // all that cudaGetLastError() needs of the emulation

extern "C" void* tickets_new(int count) { return new libra::LaunchTickets(count); }

extern "C" void tickets_delete(void* tickets) { delete static_cast<libra::LaunchTickets*>(tickets); }

extern "C" int tickets_take(void* tickets, int device, int stream, int capturing, int error) {
  CUstream_st one{static_cast<unsigned long long>(stream),
                  capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone, error};
  return static_cast<libra::LaunchTickets*>(tickets)->take(device, &one);
}
