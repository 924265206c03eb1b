// A fiber: a function with a stack of its own, which runs until it gives control back. Told to the sanitizers, so that
// each fiber is a thread of its own to ThreadSanitizer and a stack of its own to AddressSanitizer.
//
// The emulator itself is compiled without sanitizers. MGRAN_EMULATOR_TSAN or MGRAN_EMULATOR_ASAN says what the
// kernels are compiled with.
#pragma once
#include <cstddef>

namespace mgran::emulator {

// One side of a switch: the state of a fiber, or of the thread that runs fibers.
struct Context {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // the lowest address
  std::size_t stack_bytes = 0;
  void* tsan = nullptr;       // ThreadSanitizer's handle
  void* asan_fake = nullptr;  // AddressSanitizer's fake stack while the context is away
};

// Whether ThreadSanitizer may take a switch as an order between the two sides.
enum class Order { none, happens_before };

constexpr std::size_t kStackBytes = 128 << 10;

char* new_stack();  // kStackBytes, and an inaccessible page below; null: no memory
void free_stack(char* stack);

// Fills `context` for the calling thread.
void enter_thread(Context& context);

// Makes a fiber that calls `entry`, which must never return, when it is first switched to. The context of a fiber
// that has ended can be used again: ThreadSanitizer's part of it is dear to make.
void make_fiber(Context& context, char* stack, void (*entry)());
void drop_fiber(Context& context);

// To ThreadSanitizer, makes what this thread does from now on the deeds of `context`, on the stack as it is.
void become(Context& context, Order order);

// Goes to `to` and returns when somebody switches back. `last`: `from` will never be switched to again.
void switch_context(Context& from, Context& to, Order order, bool last = false);

// What a fiber does first.
void arrive(Context& me);

// Orders what one fiber did before release() before what another does after acquire().
void release(void* object);
void acquire(void* object);

}  // namespace mgran::emulator
