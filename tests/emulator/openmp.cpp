// OpenMP's runtime in plain pthreads, for ThreadSanitizer: libgomp orders its threads by means that the sanitizer
// does not see, and every loop would be a false report. GCC compiles `#pragma omp` into calls of these functions.
//
// There is what the CPU kernels use: parallel regions (nested ones run on one thread), static and dynamic loops,
// critical sections, barriers. A construct that is missing here does not link.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <vector>

namespace {

// The chunks go to the threads in turn: as good a dynamic schedule as any, always the same, and every thread gets its
// share however slowly it starts. A common counter would order what one thread has done before what another does next,
// which no kernel may rely on, and hide their races.
struct Loop {
  long start = 0, end = 0, step = 1, chunk = 1;
};

struct Team {
  Team(void (*team_body)(void*), void* team_data) : body(team_body), data(team_data) {}

  void (*body)(void*);
  void* data;
  int size = 1;
  std::map<int, Loop> loops;  // of a region, in the order in which each thread comes to them
  pthread_barrier_t barrier{};
};

struct Member {
  Team* team;
  int index;
  int loops_begun;
  Loop* loop;
  long chunks_taken;
};

thread_local Member self{nullptr, 0, 0, nullptr, 0};
std::atomic<int> default_threads{2};
pthread_mutex_t critical = PTHREAD_MUTEX_INITIALIZER;

void set_loop(Loop& loop, long start, long end, long step, long chunk) {
  loop.start = start;
  loop.end = end;
  loop.step = step;
  loop.chunk = std::max(1L, chunk);
}

void* work(void* argument) {
  self = *static_cast<Member*>(argument);
  self.team->body(self.team->data);
  return nullptr;
}

void run_team(Team& team, unsigned threads, Loop* loop = nullptr) {
  const Member outer = self;
  team.size = outer.team ? 1 : threads ? static_cast<int>(threads) : default_threads.load();
  if (pthread_barrier_init(&team.barrier, nullptr, static_cast<unsigned>(team.size))) std::abort();
  std::vector<Member> members;
  for (int i = 0; i < team.size; ++i) members.push_back({&team, i, 0, loop, 0});
  std::vector<pthread_t> handles(static_cast<std::size_t>(team.size));
  for (std::size_t i = 1; i < handles.size(); ++i)
    if (pthread_create(&handles[i], nullptr, work, &members[i])) std::abort();
  work(&members[0]);
  self = outer;
  for (std::size_t i = 1; i < handles.size(); ++i) pthread_join(handles[i], nullptr);
  pthread_barrier_destroy(&team.barrier);
}

}  // namespace

extern "C" {

int omp_get_thread_num() { return self.index; }
int omp_get_num_threads() { return self.team ? self.team->size : 1; }
int omp_get_max_threads() { return default_threads.load(); }
int omp_in_parallel() { return self.team && self.team->size > 1; }
void omp_set_num_threads(int threads) { default_threads.store(threads); }
int omp_get_num_procs() { return default_threads.load(); }

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  Team team{body, data};
  run_team(team, threads);
}

void GOMP_parallel_loop_dynamic(void (*body)(void*), void* data, unsigned threads, long start, long end, long step,
                                long chunk, unsigned) {
  Team team{body, data};
  Loop loop;
  set_loop(loop, start, end, step, chunk);
  run_team(team, threads, &loop);
}
void GOMP_parallel_loop_nonmonotonic_dynamic(void (*body)(void*), void* data, unsigned threads, long start, long end,
                                             long step, long chunk, unsigned flags) {
  GOMP_parallel_loop_dynamic(body, data, threads, start, end, step, chunk, flags);
}
void GOMP_parallel_loop_guided(void (*body)(void*), void* data, unsigned threads, long start, long end, long step,
                               long chunk, unsigned flags) {
  GOMP_parallel_loop_dynamic(body, data, threads, start, end, step, chunk, flags);
}
void GOMP_parallel_loop_nonmonotonic_guided(void (*body)(void*), void* data, unsigned threads, long start, long end,
                                            long step, long chunk, unsigned flags) {
  GOMP_parallel_loop_dynamic(body, data, threads, start, end, step, chunk, flags);
}

bool GOMP_loop_dynamic_next(long* first, long* last) {
  Loop& loop = *self.loop;
  const long turn = self.chunks_taken++ * self.team->size + self.index;
  const long at = loop.start + turn * loop.chunk * loop.step;
  const bool more = loop.step > 0 ? at < loop.end : at > loop.end;
  if (!more) return false;
  const long behind = at + loop.chunk * loop.step;
  *first = at;
  *last = loop.step > 0 ? std::min(behind, loop.end) : std::max(behind, loop.end);
  return true;
}
bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) { return GOMP_loop_dynamic_next(first, last); }
bool GOMP_loop_guided_next(long* first, long* last) { return GOMP_loop_dynamic_next(first, last); }
bool GOMP_loop_nonmonotonic_guided_next(long* first, long* last) { return GOMP_loop_dynamic_next(first, last); }

// A loop inside a region: the first thread to come sets it up. The critical section orders the others after it.
bool GOMP_loop_dynamic_start(long start, long end, long step, long chunk, long* first, long* last) {
  pthread_mutex_lock(&critical);
  const int index = self.loops_begun++;
  const bool first_to_come = self.team->loops.count(index) == 0;
  self.loop = &self.team->loops[index];
  self.chunks_taken = 0;
  if (first_to_come) set_loop(*self.loop, start, end, step, chunk);
  pthread_mutex_unlock(&critical);
  return GOMP_loop_dynamic_next(first, last);
}
bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long* first, long* last) {
  return GOMP_loop_dynamic_start(start, end, step, chunk, first, last);
}

void GOMP_barrier() {
  if (self.team) pthread_barrier_wait(&self.team->barrier);
}
void GOMP_loop_end_nowait() {}
void GOMP_loop_end() { GOMP_barrier(); }

void GOMP_critical_start() { pthread_mutex_lock(&critical); }
void GOMP_critical_end() { pthread_mutex_unlock(&critical); }
void GOMP_atomic_start() { pthread_mutex_lock(&critical); }
void GOMP_atomic_end() { pthread_mutex_unlock(&critical); }
}
