// Calls the launch ABI on cases from a file and writes what came out:
//
//   driver CASES RESULTS PLACE THREADS ISA
//
// PLACE says where the buffers lie:
//   heap   each in an allocation of its own, at the case's offset from a multiple of 16; AddressSanitizer's red zones,
//          or guard bytes, at both ends;
//   end    each flush with the end of a page, behind which nothing may be touched: what AddressSanitizer does not see
//          (vector loads under a mask) faults as well;
//   start  each at the start of a page, before which nothing may be touched.
// THREADS and ISA (0 portable, 1 AVX2, 2 AVX-512) are for the CPU kernels.
//
// CASES, little-endian: "MGRANCAS", u32 count, then for each case: name, function (u32 length and bytes each), u32
// size of the struct, the struct, u32 number of buffers, then for each: label, u32 offset of its pointer in the
// struct, u32 role (0 in, 1 out, 2 scratch), u32 bytes from a multiple of 16, u64 size, contents.
// RESULTS: for each case, i32 status, then the contents of its outputs. The first fault ends the process; the results
// then hold the cases before it.
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace mgran {
enum class Isa : int;
// csrc/cpu/dispatch.h; not there when the driver is linked with CUDA kernels.
__attribute__((weak)) void limit_isa(Isa most);
}  // namespace mgran

namespace {

enum class Place { heap, end, start };

constexpr std::size_t kPage = 4096;
constexpr unsigned char kMark = 0xA5;
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kHeapGuard = 0;
#else
constexpr std::size_t kHeapGuard = 64;
#endif
constexpr int kFault = 87;

[[noreturn]] void stop(const std::string& words) {
  std::fprintf(stderr, "driver: %s\n", words.c_str());
  std::fflush(nullptr);
  ::_exit(kFault);
}

struct Buffer {
  std::string label;
  std::uint32_t pointer_offset = 0, role = 0, misalignment = 0;
  std::vector<unsigned char> contents;
  // The memory that holds it: the buffer is data .. data + contents.size(); the rest is guard.
  unsigned char *memory = nullptr, *data = nullptr;
  std::size_t memory_bytes = 0;
};

struct Case {
  std::string name, function;
  std::vector<unsigned char> arguments;
  std::vector<Buffer> buffers;
};

// What the handler of faults looks at.
const Case* current = nullptr;

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {
    if (!file_) stop(std::string("cannot read ") + path);
  }

  template <typename T>
  T number() {
    T value;
    get(&value, sizeof(value));
    return value;
  }
  std::string text() {
    std::string result(number<std::uint32_t>(), '\0');
    get(&result[0], result.size());
    return result;
  }
  std::vector<unsigned char> bytes(std::size_t count) {
    std::vector<unsigned char> result(count);
    get(result.data(), count);
    return result;
  }

 private:
  void get(void* to, std::size_t count) {
    if (!file_.read(static_cast<char*>(to), static_cast<std::streamsize>(count))) stop("the case file ends too early");
  }
  std::ifstream file_;
};

Case read_case(Reader& reader) {
  Case result;
  result.name = reader.text();
  result.function = reader.text();
  result.arguments = reader.bytes(reader.number<std::uint32_t>());
  result.buffers.resize(reader.number<std::uint32_t>());
  for (Buffer& buffer : result.buffers) {
    buffer.label = reader.text();
    buffer.pointer_offset = reader.number<std::uint32_t>();
    buffer.role = reader.number<std::uint32_t>();
    buffer.misalignment = reader.number<std::uint32_t>();
    buffer.contents = reader.bytes(reader.number<std::uint64_t>());
  }
  return result;
}

void place_on_heap(Buffer& buffer) {
  // Before the buffer: its misalignment, and a guard that keeps the address a multiple of 16.
  const std::size_t before = kHeapGuard + buffer.misalignment, size = buffer.contents.size();
  buffer.memory_bytes = before + size + kHeapGuard;
  void* memory = nullptr;
  if (::posix_memalign(&memory, 16, buffer.memory_bytes ? buffer.memory_bytes : 1)) stop("no memory for a buffer");
  buffer.memory = static_cast<unsigned char*>(memory);
  buffer.data = buffer.memory + before;
  std::memset(buffer.memory, kMark, buffer.memory_bytes);
  if (size) std::memcpy(buffer.data, buffer.contents.data(), size);
#if defined(__SANITIZE_ADDRESS__)
  // Poison counts in 8 bytes: of a misalignment of 1 to 7 bytes nothing can be poisoned.
  ASAN_POISON_MEMORY_REGION(buffer.memory, before);
  ASAN_UNPOISON_MEMORY_REGION(buffer.data, size);
#endif
}

void place_on_pages(Buffer& buffer, bool at_end) {
  const std::size_t size = buffer.contents.size(), pages = (size + kPage - 1) / kPage * kPage;
  void* memory = ::mmap(nullptr, pages + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) stop("no memory for a buffer");
  buffer.memory = static_cast<unsigned char*>(memory) + kPage;
  buffer.memory_bytes = pages;
  if (pages && ::mprotect(buffer.memory, pages, PROT_READ | PROT_WRITE)) stop("no memory for a buffer");
  if (pages) std::memset(buffer.memory, kMark, pages);
  buffer.data = buffer.memory + (at_end ? pages - size : 0);
  if (size) std::memcpy(buffer.data, buffer.contents.data(), size);
}

void release(Buffer& buffer, Place place) {
  if (place == Place::heap) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(buffer.memory, buffer.memory_bytes);
#endif
    std::free(buffer.memory);
  } else {
    ::munmap(buffer.memory - kPage, buffer.memory_bytes + 2 * kPage);
  }
}

void check_guards(const Case& test, const Buffer& buffer) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(buffer.memory, buffer.memory_bytes);
#endif
  const unsigned char* const end = buffer.memory + buffer.memory_bytes;
  for (const unsigned char* p = buffer.memory; p < end; ++p) {
    const bool inside = p >= buffer.data && p < buffer.data + buffer.contents.size();
    if (!inside && *p != kMark)
      stop(test.name + ": written outside of " + buffer.label + ", at byte " + std::to_string(p - buffer.data) +
           " of its " + std::to_string(buffer.contents.size()));
  }
  if (buffer.role == 0 && !buffer.contents.empty() &&
      std::memcmp(buffer.data, buffer.contents.data(), buffer.contents.size()) != 0)
    stop(test.name + ": " + buffer.label + ", which is only to be read, has changed");
}

// Names the buffer next to a faulting address. Not strictly allowed in a signal's handler, but the process ends here.
void on_fault(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<std::intptr_t>(info->si_addr);
  std::string words = current ? current->name + ": " : std::string();
  words += "a fault at an address away from every buffer";
  if (current) {
    for (const Buffer& buffer : current->buffers) {
      const auto at = address - reinterpret_cast<std::intptr_t>(buffer.data);
      const auto size = static_cast<std::intptr_t>(buffer.contents.size());
      if (at < -static_cast<std::intptr_t>(2 * kPage) || at > size + static_cast<std::intptr_t>(2 * kPage)) continue;
      words = current->name + ": an access to byte " + std::to_string(at) + " of " + buffer.label + ", which has " +
              std::to_string(size);
      break;
    }
  }
  stop(words);
}

void handle_faults() {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  static char stack[64 << 10];
  stack_t alternative{};
  alternative.ss_sp = stack;
  alternative.ss_size = sizeof(stack);
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  if (sigaltstack(&alternative, nullptr) || sigaction(SIGSEGV, &action, nullptr) || sigaction(SIGBUS, &action, nullptr))
    stop("cannot handle faults");
#else
  (void)on_fault;
#endif
}

int call(const Case& test, const void* arguments, int threads) {
  void* const symbol = dlsym(RTLD_DEFAULT, test.function.c_str());
  if (!symbol) stop(test.name + ": there is no " + test.function);
  const bool on_cpu = test.function.size() > 4 && test.function.compare(test.function.size() - 4, 4, "_cpu") == 0;
  if (on_cpu) return reinterpret_cast<int (*)(const void*, int)>(symbol)(arguments, threads);
  return reinterpret_cast<int (*)(const void*, void*)>(symbol)(arguments, nullptr);
}

void run(Case& test, Place place, int threads, std::ofstream& results) {
  current = &test;
  for (Buffer& buffer : test.buffers) {
    if (place == Place::heap)
      place_on_heap(buffer);
    else
      place_on_pages(buffer, place == Place::end);
    std::memcpy(test.arguments.data() + buffer.pointer_offset, &buffer.data, sizeof(buffer.data));
  }
  const std::int32_t status = call(test, test.arguments.data(), threads);
  for (const Buffer& buffer : test.buffers) check_guards(test, buffer);
  results.write(reinterpret_cast<const char*>(&status), sizeof(status));
  for (const Buffer& buffer : test.buffers)
    if (buffer.role == 1)
      results.write(reinterpret_cast<const char*>(buffer.data), static_cast<std::streamsize>(buffer.contents.size()));
  results.flush();
  if (!results) stop("cannot write the results");
  current = nullptr;
  for (Buffer& buffer : test.buffers) release(buffer, place);
}

}  // namespace

int main(int count, char** words) {
  if (count != 6) stop("use: driver CASES RESULTS heap|end|start THREADS ISA");
  const std::string where = words[3];
  const Place place = where == "heap" ? Place::heap : where == "end" ? Place::end : Place::start;
  const int threads = std::atoi(words[4]);
  if (mgran::limit_isa) mgran::limit_isa(static_cast<mgran::Isa>(std::atoi(words[5])));
  handle_faults();
  Reader reader(words[1]);
  if (reader.number<std::uint64_t>() != 0x5341434E4152474DULL) stop("not a case file");
  std::ofstream results(words[2], std::ios::binary);
  const auto cases = reader.number<std::uint32_t>();
  for (std::uint32_t i = 0; i < cases; ++i) {
    Case test = read_case(reader);
    run(test, place, threads, results);
  }
  return 0;
}
