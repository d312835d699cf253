#include "fiber.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

namespace emulation {
namespace {
constexpr unsigned long kStackBytes = 128 << 10;
}

Fiber* new_fiber(void (*body)()) {
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) abort();
  mprotect(stack, sysconf(_SC_PAGESIZE), PROT_NONE);  // an overflowing stack stops here
  Fiber* fiber = new Fiber{};
  fiber->stack = static_cast<char*>(stack);
  restart_fiber(*fiber, body);
  return fiber;
}

#if defined(__x86_64__)

// Saves the stack pointer and the registers that a call must keep, and takes up the other stack where it did the same.
extern "C" void emulation_switch(void** save_stack_pointer, void* other_stack_pointer);
asm(R"(
  .text
  .type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulation_switch, . - emulation_switch
)");

void switch_fiber(Fiber& from, Fiber& to) { emulation_switch(&from.stack_pointer, to.stack_pointer); }

void restart_fiber(Fiber& fiber, void (*body)()) {
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
  *--top = nullptr;  // no caller to return to; it also leaves the alignment that a function expects on entry
  *--top = reinterpret_cast<void*>(body);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.stack_pointer = top;
}

#else  // slower, and portable

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

void restart_fiber(Fiber& fiber, void (*body)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, body, 0);
}

#endif

}  // namespace emulation
