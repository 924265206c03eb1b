#include "block.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace mgran::emulator {

thread_local uint3 thread_index, block_index;
thread_local dim3 block_size, grid_size;

namespace {

#if defined(MGRAN_EMULATOR_ASAN)
constexpr std::size_t kSharedGuard = 0;
#else
constexpr std::size_t kSharedGuard = 64;
#endif
constexpr int kPoison = 0xFF, kGuard = 0xA5;
const char kDynamicKey = 0;

thread_local Block* running = nullptr;
// Stands for the end of every block of a grid.
char blocks_object = 0;

// Not inlined, so that no fiber keeps the address of another thread's variable.
__attribute__((noinline)) Block& block() {
  if (!running) fail("a device function is called outside of a kernel");
  return *running;
}

void enter_block() { block().enter(); }

bool same(const Site& a, const Site& b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

}  // namespace

Block::Block(int threads)
    : count_(threads),
      threads_(static_cast<std::size_t>(count_)),
      warps_(static_cast<std::size_t>((count_ + kLanes - 1) / kLanes)),
      turn_(static_cast<std::size_t>(count_)) {
  for (int i = 0; i < count_; ++i) {
    stacks_.push_back(new_stack());
    if (!stacks_.back()) fail("no memory for the threads' stacks");
  }
}

Block::~Block() {
  for (Thread& thread : threads_) drop_fiber(thread.context);
  drop_fiber(main_);
  for (char* stack : stacks_) free_stack(stack);
}

void Block::start(uint3 index) {
  running = this;
  block_index = index;
  block_size = grid_->threads;
  grid_size = grid_->blocks;
  live_ = count_;
  waiting_ = votes_ = 0;
  barrier_site_ = Site{nullptr, "", 0};
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    const int lanes = std::min(kLanes, count_ - static_cast<int>(w) * kLanes);
    warps_[w] = Warp{};
    warps_[w].live = lanes == kLanes ? ~0u : (1u << lanes) - 1;
  }
  for (int i = 0; i < count_; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const Context used = threads_[at].context;
    threads_[at] = Thread{};
    threads_[at].context = used;
    make_fiber(threads_[at].context, stacks_[at], enter_block);
    turn_[at] = grid_->order == 1 ? count_ - 1 - i : i;
  }
}

void Block::run(const Grid& grid, uint3 index) {
  grid_ = &grid;
  enter_thread(caller_);
  main_.stack = caller_.stack;
  main_.stack_bytes = caller_.stack_bytes;
  become(main_, Order::happens_before);
  run_threads(index);
  release(&blocks_object);
  become(caller_, Order::none);
}

void Block::join() { acquire(&blocks_object); }

void Block::run_threads(uint3 index) {
  start(index);
  Shuffler shuffler(static_cast<std::uint64_t>(grid_->order) + index.x * 7919u + index.y * 104729u + index.z);
  while (live_ > 0) {
    if (grid_->order > 1) shuffler.shuffle(turn_);
    if (!run_round()) fail("deadlock: no thread of the block can go on (a divergent barrier or warp operation)");
  }
  acquire(&end_object_);
  free_shared();
  running = nullptr;
}

bool Block::waits(const Thread& thread) const {
  return (thread.at_barrier && thread.barrier == generation_) ||
         (thread.warp && thread.warp->generation == thread.operation);
}

// Lets every thread that can go on do so until it waits again or returns; false when there is none.
bool Block::run_round() {
  bool moved = false;
  for (const int i : turn_) {
    Thread& thread = threads_[static_cast<std::size_t>(i)];
    if (thread.done || waits(thread)) continue;
    moved = true;
    thread.at_barrier = false;
    thread.warp = nullptr;
    current_ = i;
    const unsigned t = static_cast<unsigned>(i);
    thread_index =
        uint3{t % grid_->threads.x, t / grid_->threads.x % grid_->threads.y, t / (grid_->threads.x * grid_->threads.y)};
    // The launch is before all that a thread does; its later turns are ordered by barriers alone.
    const Order order = thread.started ? Order::none : Order::happens_before;
    thread.started = true;
    switch_context(main_, thread.context, order);
    if (thread.done) finish(i);
  }
  return moved;
}

void Block::enter() {
  arrive(threads_[static_cast<std::size_t>(current_)].context);
  grid_->call(grid_->context);
  Thread& thread = threads_[static_cast<std::size_t>(current_)];
  thread.done = true;
  // A thread's end is before the end of the block, but not before another thread's start.
  release(&end_object_);
  switch_context(thread.context, main_, Order::none, true);
  std::abort();  // nobody switches to a thread that has returned
}

void Block::finish(int i) {
  --live_;
  Warp& warp = warps_[static_cast<std::size_t>(i / kLanes)];
  const unsigned lane = 1u << (i % kLanes);
  warp.live &= ~lane;
  if (warp.arrived && (warp.mask & lane)) fail("a lane has returned while its warp waits for it in a _sync operation");
  complete_barrier();
}

void Block::pause(Thread& thread) { switch_context(thread.context, main_, Order::none); }

void Block::complete_barrier() {
  if (live_ == 0 || waiting_ != live_) return;
  if (live_ != count_) fail("only a part of the block reaches __syncthreads: the other threads have returned");
  waiting_ = 0;
  result_ = votes_;
  votes_ = 0;
  ++generation_;
  barrier_site_ = Site{nullptr, "", 0};
}

int Block::barrier(Site site, int predicate, Vote vote) {
  Thread& thread = threads_[static_cast<std::size_t>(current_)];
  thread.site = site;
  if (barrier_site_.operation && !same(barrier_site_, site)) {
    std::fprintf(stderr, "emulator: other threads wait at %s:%d\n", barrier_site_.file, barrier_site_.line);
    fail("threads of one block meet at different __syncthreads");
  }
  barrier_site_ = site;
  votes_ += vote == Vote::all ? predicate == 0 : vote == Vote::none ? 0 : predicate != 0;
  // Two objects in turn: a thread that leaves this barrier late must not see what others did before the next one.
  char* const object = &barrier_objects_[generation_ & 1];
  release(object);
  thread.at_barrier = true;
  thread.barrier = generation_;
  ++waiting_;
  complete_barrier();
  pause(thread);
  acquire(object);
  return vote == Vote::all ? result_ == 0 : vote == Vote::any ? result_ != 0 : result_;
}

// Waits until every lane of `mask` is in the operation.
void Block::meet(Site site, unsigned mask) {
  Thread& thread = threads_[static_cast<std::size_t>(current_)];
  Warp& warp = warps_[static_cast<std::size_t>(current_ / kLanes)];
  const unsigned lane = 1u << (current_ % kLanes);
  thread.site = site;
  if (!(mask & lane)) fail("a lane calls a _sync operation whose mask leaves it out");
  if (mask & ~warp.live) fail("the mask of a _sync operation names a lane that has returned or does not exist");
  if (warp.arrived && warp.mask != mask) fail("lanes of one warp meet in a _sync operation with different masks");
  if (warp.arrived && std::strcmp(warp.operation, site.operation) != 0)
    fail("lanes of one warp meet in different _sync operations");
  warp.mask = mask;
  warp.operation = site.operation;
  warp.arrived |= lane;
  if (warp.arrived == mask) {
    warp.arrived = 0;
    ++warp.generation;
    return;
  }
  thread.warp = &warp;
  thread.operation = warp.generation;
  pause(thread);
}

void Block::warp_barrier(Site site, unsigned mask) {
  Warp& warp = warps_[static_cast<std::size_t>(current_ / kLanes)];
  char* const object = &warp.objects[warp.generation & 1];
  release(object);
  meet(site, mask);
  acquire(object);
}

std::uint64_t Block::exchange(Site site, unsigned mask, std::uint64_t value, int operand, int width, Shuffle kind) {
  if (width <= 0 || width > kLanes || (width & (width - 1))) fail("the width of a shuffle is no power of two up to 32");
  const int lane = current_ % kLanes;
  Warp& warp = warps_[static_cast<std::size_t>(current_ / kLanes)];
  std::uint64_t* const slots = warp.slots[warp.generation & 1];
  slots[lane] = value;
  meet(site, mask);
  const int first = lane & ~(width - 1), own = lane - first;
  int other = own;  // out of range: a lane keeps its own value
  if (kind == Shuffle::absolute) other = operand & (width - 1);
  if (kind == Shuffle::up && own - operand >= 0) other = own - operand;
  if (kind == Shuffle::down && own + operand < width) other = own + operand;
  if (kind == Shuffle::exclusive_or && (own ^ operand) < width) other = own ^ operand;
  const int from = first + other;
  // What a lane outside of the mask gives is undefined: poison.
  return from == lane || (mask >> from & 1) ? slots[from] : ~std::uint64_t{0};
}

unsigned Block::ballot(Site site, unsigned mask, int predicate) {
  Warp& warp = warps_[static_cast<std::size_t>(current_ / kLanes)];
  std::uint64_t* const slots = warp.slots[warp.generation & 1];
  slots[current_ % kLanes] = predicate != 0;
  meet(site, mask);
  unsigned result = 0;
  for (int i = 0; i < kLanes; ++i)
    if ((mask >> i & 1) && slots[i]) result |= 1u << i;
  return result;
}

void* Block::shared_array(const void* key, const char* name, std::size_t bytes, std::size_t alignment) {
  for (SharedArray& array : arrays_) {
    if (array.key != key) continue;
    acquire(array.memory);
    return array.data;
  }
  shared_bytes_ += bytes;
  if (shared_bytes_ > kMostSharedBytes) fail("a block has more than 48 KiB of shared memory");
  alignment = std::max<std::size_t>(alignment, 16);
  SharedArray array{key, name, nullptr, nullptr, bytes};
  void* memory = nullptr;
  if (::posix_memalign(&memory, alignment, std::max<std::size_t>(1, bytes + 2 * kSharedGuard)))
    fail("no memory for a block's shared memory");
  array.memory = static_cast<char*>(memory);
  array.data = array.memory + kSharedGuard;
  std::memset(array.memory, kGuard, bytes + 2 * kSharedGuard);
  std::memset(array.data, kPoison, bytes);
  arrays_.push_back(array);
  release(array.memory);
  return array.data;
}

void* Block::dynamic_shared() {
  return shared_array(&kDynamicKey, "the dynamic shared memory", grid_->shared_bytes, 16);
}

void Block::free_shared() {
  for (const SharedArray& array : arrays_) {
    for (std::size_t i = 0; i < kSharedGuard; ++i) {
      if (array.memory[i] == static_cast<char>(kGuard) && array.data[array.bytes + i] == static_cast<char>(kGuard))
        continue;
      const std::string words = std::string("a kernel has written outside of the shared array ") + array.name;
      fail(words.c_str());
    }
    std::free(array.memory);
  }
  arrays_.clear();
  shared_bytes_ = 0;
}

void Block::print_threads() {
  constexpr int kShown = 4;
  std::fprintf(
      stderr, "  thread %d is at %s %s:%d\n", current_, threads_[static_cast<std::size_t>(current_)].site.operation,
      threads_[static_cast<std::size_t>(current_)].site.file, threads_[static_cast<std::size_t>(current_)].site.line);
  int waiting = 0, done = 0;
  for (int i = 0; i < count_; ++i) {
    const Thread& thread = threads_[static_cast<std::size_t>(i)];
    done += thread.done;
    if (thread.done || (!thread.at_barrier && !thread.warp)) continue;
    if (waiting++ < kShown)
      std::fprintf(stderr, "  thread %d waits at %s %s:%d\n", i, thread.site.operation, thread.site.file,
                   thread.site.line);
  }
  std::fprintf(stderr, "  %d threads wait, %d of %d have returned\n", waiting, done, count_);
}

void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s; block (%u, %u, %u)\n", what, block_index.x, block_index.y, block_index.z);
  if (running) running->print_threads();
  std::fflush(nullptr);
  ::_exit(86);
}

void* shared_array(const void* key, const char* name, std::size_t bytes, std::size_t alignment) {
  return block().shared_array(key, name, bytes, alignment);
}
void* dynamic_shared() { return block().dynamic_shared(); }
int block_barrier(Site site, int predicate, Vote vote) { return block().barrier(site, predicate, vote); }
void warp_barrier(Site site, unsigned mask) { block().warp_barrier(site, mask); }
std::uint64_t warp_exchange(Site site, unsigned mask, std::uint64_t value, int operand, int width, Shuffle kind) {
  return block().exchange(site, mask, value, operand, width, kind);
}
unsigned warp_ballot(Site site, unsigned mask, int predicate) { return block().ballot(site, mask, predicate); }

}  // namespace mgran::emulator
