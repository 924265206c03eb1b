// The emulator's grids and blocks. Compiled without sanitizers, whatever the kernels are compiled with (fiber.h).
#include "emulator.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

#include "block.h"

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace mgran::emulator {
namespace {

// What every GPU since compute capability 7.5 takes. More shared memory than 48 KiB has to be asked for, which
// mgran::launch does not.
constexpr unsigned kMostThreads = 1024, kMostThreadsInZ = 64, kMostBlocksInX = 0x7fffffff, kMostBlocksInYZ = 65535;

std::atomic<MgranHook> launch_hook{nullptr};

int thread_order() {
  const char* text = std::getenv("MGRAN_EMULATOR_ORDER");
  return text ? std::atoi(text) : 0;
}

uint3 block_at(const Grid& grid, std::size_t i) {
  return uint3{static_cast<unsigned>(i % grid.blocks.x), static_cast<unsigned>(i / grid.blocks.x % grid.blocks.y),
               static_cast<unsigned>(i / grid.blocks.x / grid.blocks.y)};
}

// To ThreadSanitizer, nothing may order the blocks of a grid but the launch. A fiber that is used again is ordered
// after what it did before, so as many blocks as here take turns, and races between any of them show. It knows 8128
// threads, fibers included.
#if defined(MGRAN_EMULATOR_TSAN)
constexpr std::size_t kMostLiveBlocks = 8, kMostLiveThreads = 4096;
#else
constexpr std::size_t kMostLiveBlocks = 1, kMostLiveThreads = kMostThreads;
#endif

// Blocks of so many threads, kept for the next launch.
std::vector<std::unique_ptr<Block>>& blocks_of(std::size_t threads) {
  static thread_local std::map<std::size_t, std::vector<std::unique_ptr<Block>>> pool;
  std::vector<std::unique_ptr<Block>>& blocks = pool[threads];
  const std::size_t count = std::max<std::size_t>(1, std::min(kMostLiveBlocks, kMostLiveThreads / threads));
  while (blocks.size() < count) blocks.push_back(std::make_unique<Block>(static_cast<int>(threads)));
  return blocks;
}

void run_blocks(const Grid& grid, const std::vector<uint3>& indices) {
  auto& blocks = blocks_of(static_cast<std::size_t>(grid.threads.x) * grid.threads.y * grid.threads.z);
  for (std::size_t i = 0; i < indices.size(); ++i) blocks[i % blocks.size()]->run(grid, indices[i]);
  Block::join();
}

}  // namespace

MgranHook hook() { return launch_hook.load(std::memory_order_relaxed); }

int run_hook(void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, int count, const void* const* arguments,
             const std::size_t* sizes) {
  Dl_info info{};
  if (!dladdr(kernel, &info) || !info.dli_sname || info.dli_saddr != kernel) {
    std::fprintf(stderr, "emulator: a kernel has no symbol: give it external linkage, link the library with -shared\n");
    return cudaErrorInvalidDeviceFunction;
  }
  const unsigned blocks[3] = {grid.x, grid.y, grid.z}, threads[3] = {block.x, block.y, block.z};
  return hook()(info.dli_sname, blocks, threads, shared_bytes, count, arguments, sizes);
}

int run_grid(dim3 blocks, dim3 threads, std::size_t shared_bytes, void (*call)(void*), void* context) {
  const bool some = blocks.x && blocks.y && blocks.z && threads.x && threads.y && threads.z;
  if (!some || threads.x > kMostThreads || threads.y > kMostThreads || threads.z > kMostThreadsInZ ||
      static_cast<std::uint64_t>(threads.x) * threads.y * threads.z > kMostThreads || blocks.x > kMostBlocksInX ||
      blocks.y > kMostBlocksInYZ || blocks.z > kMostBlocksInYZ)
    return cudaErrorInvalidConfiguration;
  if (shared_bytes > kMostSharedBytes) return cudaErrorInvalidValue;
  const Grid grid{blocks, threads, shared_bytes, call, context, thread_order()};
  const std::size_t count = static_cast<std::size_t>(blocks.x) * blocks.y * blocks.z;
  std::vector<uint3> indices(count);
  for (std::size_t i = 0; i < count; ++i) indices[grid.order == 1 ? count - 1 - i : i] = block_at(grid, i);
  if (grid.order > 1) {
    Shuffler shuffler(static_cast<std::uint64_t>(grid.order));
    shuffler.shuffle(indices);
  }
  run_blocks(grid, indices);
  return cudaSuccess;
}

}  // namespace mgran::emulator

extern "C" void mgran_emulator_hook(MgranHook hook) { mgran::emulator::launch_hook.store(hook); }
