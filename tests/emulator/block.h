// One block of an emulated grid: its threads as fibers, its barriers, its warps, its shared memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "emulator.h"
#include "fiber.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#undef warpSize

namespace mgran::emulator {

constexpr std::size_t kMostSharedBytes = 48 << 10;
constexpr int kLanes = 32;

struct Grid {
  dim3 blocks, threads;
  std::size_t shared_bytes;
  void (*call)(void*);  // the kernel, for one thread
  void* context;
  int order;  // of the environment's MGRAN_EMULATOR_ORDER
};

// Fisher-Yates with a generator of its own: the same order on every machine.
class Shuffler {
 public:
  explicit Shuffler(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

  template <typename T>
  void shuffle(std::vector<T>& items) {
    for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[next() % i]);
  }

 private:
  std::uint64_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return state_ >> 33;
  }
  std::uint64_t state_;
};

struct Warp {
  unsigned live = 0;     // lanes that have not returned
  unsigned arrived = 0;  // lanes that wait in the current operation
  unsigned mask = 0;     // lanes that it wants
  const char* operation = nullptr;
  std::uint64_t generation = 0;  // completed operations
  // Two sets, since a lane may reach the next operation before another has read the results of this one.
  std::uint64_t slots[2][kLanes] = {};
  char objects[2] = {};
};

struct Thread {
  Context context;
  Site site{"its first line", "", 0};
  bool started = false;
  bool done = false;
  bool at_barrier = false;
  std::uint64_t barrier = 0;  // the barrier's generation that it waits in
  Warp* warp = nullptr;       // the warp whose operation it waits in
  std::uint64_t operation = 0;
};

// An array in shared memory, poisoned with 0xFF (NaN as floats) and between guards, whose bytes are looked at when
// the block has ended. Under AddressSanitizer the guards are the sanitizer's.
struct SharedArray {
  const void* key;
  const char* name;
  char* memory;  // guards included
  char* data;
  std::size_t bytes;
};

class Block {
 public:
  explicit Block(int threads);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Runs the grid's block at `index`. What it does is ordered after what the caller has done, and before what the
  // caller does after join().
  void run(const Grid& grid, uint3 index);
  static void join();

  void* shared_array(const void* key, const char* name, std::size_t bytes, std::size_t alignment);
  void* dynamic_shared();
  int barrier(Site site, int predicate, Vote vote);
  void warp_barrier(Site site, unsigned mask);
  std::uint64_t exchange(Site site, unsigned mask, std::uint64_t value, int operand, int width, Shuffle kind);
  unsigned ballot(Site site, unsigned mask, int predicate);
  void print_threads();
  void enter();  // what a fiber runs

 private:
  void start(uint3 index);
  void run_threads(uint3 index);
  bool waits(const Thread& thread) const;
  bool run_round();
  void finish(int i);
  void meet(Site site, unsigned mask);
  void pause(Thread& thread);
  void complete_barrier();
  void free_shared();

  const int count_;
  const Grid* grid_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<char*> stacks_;
  std::vector<int> turn_;  // the order of the threads
  std::vector<SharedArray> arrays_;
  std::size_t shared_bytes_ = 0;
  Context caller_, main_;
  int current_ = 0, live_ = 0;

  int waiting_ = 0;               // threads at the barrier
  std::uint64_t generation_ = 0;  // completed barriers
  Site barrier_site_{nullptr, "", 0};
  int votes_ = 0, result_ = 0;
  char barrier_objects_[2] = {}, end_object_ = 0;  // what release() and acquire() go by
};

}  // namespace mgran::emulator
