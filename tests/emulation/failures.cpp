// What goes wrong in a kernel, in words: its own checks, deadlock, and the signals that its machine code raises.
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <ucontext.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "guarded_memory.h"
#include "scheduler.h"

namespace emulation {
namespace {

const void* program_counter([[maybe_unused]] const void* context) {
#if defined(__linux__) && defined(__x86_64__)
  return reinterpret_cast<void*>(static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
#elif defined(__linux__) && defined(__aarch64__)
  return reinterpret_cast<void*>(static_cast<const ucontext_t*>(context)->uc_mcontext.pc);
#else
  return nullptr;
#endif
}

void on_signal(int number, siginfo_t* info, void* context) {
  if (current < 0) {  // not a kernel's doing
    signal(number, SIG_DFL);
    return;
  }
  const void* where = program_counter(context);
  if (number == SIGSEGV || number == SIGBUS) {
    const GuardedBlock* block = find_guarded_block(info->si_addr);
    const bool inside = block && info->si_addr >= block->data && info->si_addr < block->data + block->bytes;
    fail((inside ? "store to an input: " : "access outside of memory: ") + describe_address(info->si_addr), where);
  }
  fail(number == SIGFPE ? "integer division by zero"
                        : "undefined behaviour: signed overflow, shift, index, or misaligned vector access",
       where);
}

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
struct sigaction actions_before[5];  // the process's own

}  // namespace

SignalGuard::SignalGuard() {
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;  // the handler does not return
  for (int i = 0; i < 5; ++i) sigaction(kSignals[i], &action, &actions_before[i]);
}

SignalGuard::~SignalGuard() {
  for (int i = 0; i < 5; ++i) sigaction(kSignals[i], &actions_before[i], nullptr);
}

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string text(Place place) {
  return place.file ? std::string(place.file) + ":" + std::to_string(place.line) : "no synchronisation yet";
}
bool same(Place a, Place b) { return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file)); }

void fail(const std::string& what, const void* program_counter) {
  error = what + " [block " + text(blockIdx);
  Dl_info library;
  if (program_counter && dladdr(program_counter, &library)) {  // harness.py looks the line up
    const long offset = static_cast<const char*>(program_counter) - static_cast<const char*>(library.dli_fbase);
    char place[32];
    snprintf(place, sizeof place, "{0x%lx}", offset - 1);
    error += ", thread " + text(threads[current].index) + ", at " + place;
  } else if (current >= 0) {
    error += ", thread " + text(threads[current].index) + ", at or after " + text(threads[current].place);
  }
  error += "]";
  if (current >= 0) go_to_host();
}

void report_deadlock() {
  std::vector<std::pair<std::string, int>> groups;
  for (int i = 0; i < thread_count; ++i) {
    if (threads[i].state == State::kReturned) continue;
    const std::string where =
        (threads[i].state == State::kAtBarrier ? "the barrier at " : "the warp operation at ") + text(threads[i].place);
    auto group = std::find_if(groups.begin(), groups.end(), [&](auto& other) { return other.first == where; });
    if (group == groups.end()) group = groups.insert(group, {where, 0});
    ++group->second;
  }
  std::string what = "deadlock: ";
  for (auto& group : groups) what += std::to_string(group.second) + " threads wait in " + group.first + ", ";
  fail(what + std::to_string(thread_count - live_count) + " have returned");
}

const char* last_error() { return error.c_str(); }

}  // namespace emulation

// For harness.py.
extern "C" const char* emulation_error() { return emulation::last_error(); }
