#include "fiber.h"

#include <sys/mman.h>

#if defined(MGRAN_EMULATOR_TSAN)
#include <sanitizer/tsan_interface.h>
#endif
#if defined(MGRAN_EMULATOR_ASAN)
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#error "the emulator switches fibers on x86-64 alone"
#endif

namespace mgran::emulator {
namespace {

constexpr std::size_t kGuardBytes = 4096;

// Saves the registers that a call must preserve on the current stack, changes stacks, and restores the other side's.
// void switch_stacks(void** save /* rdi */, void* load /* rsi */)
__attribute__((naked, noinline)) void switch_stacks(void**, void*) {
  asm volatile(
      "pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}

constexpr int kSavedRegisters = 6;

}  // namespace

char* new_stack() {
  void* memory = ::mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  if (::mprotect(memory, kGuardBytes, PROT_NONE)) {
    ::munmap(memory, kStackBytes + kGuardBytes);
    return nullptr;
  }
  return static_cast<char*>(memory) + kGuardBytes;
}

void free_stack(char* stack) { ::munmap(stack - kGuardBytes, kStackBytes + kGuardBytes); }

void enter_thread([[maybe_unused]] Context& context) {
#if defined(MGRAN_EMULATOR_TSAN)
  context.tsan = __tsan_get_current_fiber();
#endif
#if defined(MGRAN_EMULATOR_ASAN)
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    void* stack = nullptr;
    pthread_attr_getstack(&attributes, &stack, &context.stack_bytes);
    context.stack = static_cast<char*>(stack);
    pthread_attr_destroy(&attributes);
  }
#endif
}

void make_fiber(Context& context, char* stack, void (*entry)()) {
  context.stack = stack;
  context.stack_bytes = kStackBytes;
  context.asan_fake = nullptr;
  // What switch_stacks pops: the registers, then its return address. A call leaves the stack 8 bytes off a multiple
  // of 16, which the unused word on top makes true of `entry` too.
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  context.stack_pointer = top;
#if defined(MGRAN_EMULATOR_TSAN)
  if (!context.tsan) context.tsan = __tsan_create_fiber(0);
#endif
}

void drop_fiber([[maybe_unused]] Context& context) {
#if defined(MGRAN_EMULATOR_TSAN)
  if (context.tsan) __tsan_destroy_fiber(context.tsan);
  context.tsan = nullptr;
#endif
}

void become([[maybe_unused]] Context& context, [[maybe_unused]] Order order) {
#if defined(MGRAN_EMULATOR_TSAN)
  if (!context.tsan) context.tsan = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(context.tsan, order == Order::none ? __tsan_switch_to_fiber_no_sync : 0);
#endif
}

void switch_context(Context& from, Context& to, [[maybe_unused]] Order order, [[maybe_unused]] bool last) {
#if defined(MGRAN_EMULATOR_TSAN)
  __tsan_switch_to_fiber(to.tsan, order == Order::none ? __tsan_switch_to_fiber_no_sync : 0);
#endif
#if defined(MGRAN_EMULATOR_ASAN)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.asan_fake, to.stack, to.stack_bytes);
#endif
  switch_stacks(&from.stack_pointer, to.stack_pointer);
  arrive(from);
}

void arrive([[maybe_unused]] Context& me) {
#if defined(MGRAN_EMULATOR_ASAN)
  __sanitizer_finish_switch_fiber(me.asan_fake, nullptr, nullptr);
#endif
}

void release([[maybe_unused]] void* object) {
#if defined(MGRAN_EMULATOR_TSAN)
  __tsan_release(object);
#endif
}

void acquire([[maybe_unused]] void* object) {
#if defined(MGRAN_EMULATOR_TSAN)
  __tsan_acquire(object);
#endif
}

}  // namespace mgran::emulator
