// Measures a disk from inside the guest: direct I/O of one kind, for a time.
//
//   diskload --path FILE-OR-DEVICE --op write|read --span BYTES [--block BYTES] [--random]
//            [--threads N] [--seconds S] [--operations N] [--sync-every N]
//
// It goes over the first SPAN bytes in turn or at random, with N operations under
// way at a time, until the time is over or N operations are done. What it writes is
// never the same twice and not zeros. With --sync-every, each Nth write of a thread
// is followed by fdatasync, which is timed by itself.
//
// One line of JSON: operations, bytes, micros (from first to last), and the latency
// of operations and of syncs in µs: {"count","p50","p90","p99","max"}.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { kThreadsMax = 64, kStampEvery = 4096, kAlignment = 4096 };
// Of all threads; what comes after so many is counted, but has no part in the percentiles.
enum { kLatenciesMax = 1 << 20 };

struct Latencies {
  uint32_t* micros;
  atomic_size_t count;
};

struct Load {
  const char* path;
  bool write;
  bool random_order;
  uint64_t span, block, threads, seconds, operations, sync_every;
  int fd;
  uint64_t end_ns;
  uint64_t salt;  // so that two runs write different data
  atomic_uint_least64_t started, done;
  struct Latencies operation_latencies, sync_latencies;
};

// splitmix64's finalizer: every input bit changes half of the output's.
static uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

static uint64_t NowNs(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static _Noreturn void Fail(const char* what) {
  fprintf(stderr, "diskload: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void Note(struct Latencies* latencies, uint64_t begin_ns, uint64_t end_ns) {
  const size_t n = atomic_fetch_add(&latencies->count, 1);
  if (n < kLatenciesMax) latencies->micros[n] = (uint32_t)((end_ns - begin_ns) / 1000);
}

static void* Work(void* argument) {
  struct Load* load = argument;
  uint64_t* buffer;
  if (posix_memalign((void**)&buffer, kAlignment, load->block) != 0) Fail("memory");
  for (size_t n = 0; n < load->block / 8; n++) buffer[n] = Mix(load->salt + n);
  const uint64_t blocks = load->span / load->block;
  for (uint64_t own = 1;; own++) {
    const uint64_t n = atomic_fetch_add(&load->started, 1);
    if (load->operations > 0 && n >= load->operations) break;
    const uint64_t begin_ns = NowNs();
    if (begin_ns >= load->end_ns) break;
    const uint64_t index = (load->random_order ? Mix(n + load->salt) : n) % blocks;
    const off_t offset = (off_t)(index * load->block);
    if (load->write) {
      for (size_t at = 0; at < load->block; at += kStampEvery) buffer[at / 8] = Mix(load->salt ^ (n << 20) ^ at);
    }
    const ssize_t moved = load->write ? pwrite(load->fd, buffer, load->block, offset)
                                      : pread(load->fd, buffer, load->block, offset);
    if (moved != (ssize_t)load->block) Fail(load->path);
    const uint64_t end_ns = NowNs();
    Note(&load->operation_latencies, begin_ns, end_ns);
    atomic_fetch_add(&load->done, 1);
    if (load->sync_every > 0 && own % load->sync_every == 0) {
      if (fdatasync(load->fd) != 0) Fail("fdatasync");
      Note(&load->sync_latencies, end_ns, NowNs());
    }
  }
  free(buffer);
  return NULL;
}

static int Ascending(const void* a, const void* b) {
  const uint32_t left = *(const uint32_t*)a, right = *(const uint32_t*)b;
  return (left > right) - (left < right);
}

static void PrintLatencies(const char* name, struct Latencies* latencies) {
  const size_t count = atomic_load(&latencies->count);
  const size_t kept = count < kLatenciesMax ? count : kLatenciesMax;
  qsort(latencies->micros, kept, sizeof *latencies->micros, Ascending);
  const double shares[] = {0.5, 0.9, 0.99, 1};
  uint32_t at[4] = {0};
  for (int n = 0; n < 4 && kept > 0; n++) at[n] = latencies->micros[(size_t)(shares[n] * (double)(kept - 1))];
  printf("\"%s\":{\"count\":%zu,\"p50\":%u,\"p90\":%u,\"p99\":%u,\"max\":%u}", name, count, at[0], at[1], at[2], at[3]);
}

static uint64_t NumberArgument(const char* name, const char* text) {
  char* end = NULL;
  errno = 0;
  const uint64_t value = text == NULL ? 0 : strtoull(text, &end, 10);
  if (text == NULL || errno != 0 || end == text || *end != '\0') {
    fprintf(stderr, "diskload: %s needs a number\n", name);
    exit(2);
  }
  return value;
}

static bool ReadArguments(struct Load* load, int argc, char** argv) {
  const struct {
    const char* name;
    uint64_t* value;
  } numbers[] = {{"--span", &load->span},       {"--block", &load->block},           {"--threads", &load->threads},
                 {"--seconds", &load->seconds}, {"--operations", &load->operations}, {"--sync-every", &load->sync_every}};
  bool op_given = false;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--random") == 0) {
      load->random_order = true;
    } else if (strcmp(argv[i], "--path") == 0 && argv[i + 1] != NULL) {
      load->path = argv[++i];
    } else if (strcmp(argv[i], "--op") == 0 && argv[i + 1] != NULL) {
      load->write = strcmp(argv[++i], "write") == 0;
      op_given = load->write || strcmp(argv[i], "read") == 0;
    } else {
      size_t n = 0;
      while (n < sizeof numbers / sizeof *numbers && strcmp(argv[i], numbers[n].name) != 0) n++;
      if (n == sizeof numbers / sizeof *numbers) return false;
      *numbers[n].value = NumberArgument(argv[i], argv[i + 1]);
      i++;
    }
  }
  return op_given && load->path != NULL && load->threads >= 1 && load->threads <= kThreadsMax &&
         load->block >= kStampEvery && load->block % kStampEvery == 0 && load->span >= load->block &&
         (load->seconds > 0 || load->operations > 0);
}

static void* Allocate(size_t bytes) {
  void* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) Fail("memory");
  return memory;
}

int main(int argc, char** argv) {
  static struct Load load = {.block = 4096, .threads = 1};
  if (!ReadArguments(&load, argc, argv)) {
    fprintf(stderr,
            "usage: diskload --path PATH --op write|read --span BYTES [--block BYTES] [--random] [--threads N]\n"
            "                [--seconds S] [--operations N] [--sync-every N]   (a time or a number of operations)\n");
    return 2;
  }
  load.fd = open(load.path, load.write ? O_RDWR | O_DIRECT : O_RDONLY | O_DIRECT);
  if (load.fd < 0) Fail(load.path);
  load.operation_latencies.micros = Allocate(kLatenciesMax * sizeof(uint32_t));
  load.sync_latencies.micros = Allocate(kLatenciesMax * sizeof(uint32_t));
  const uint64_t begin_ns = NowNs();
  load.salt = begin_ns;
  load.end_ns = load.seconds > 0 ? begin_ns + load.seconds * 1000000000u : UINT64_MAX;

  pthread_t threads[kThreadsMax];
  for (uint64_t n = 0; n < load.threads; n++) {
    errno = pthread_create(&threads[n], NULL, Work, &load);
    if (errno != 0) Fail("thread");
  }
  for (uint64_t n = 0; n < load.threads; n++) pthread_join(threads[n], NULL);
  const uint64_t micros = (NowNs() - begin_ns) / 1000;

  const uint64_t done = atomic_load(&load.done);
  printf("{\"operations\":%llu,\"bytes\":%llu,\"micros\":%llu,", (unsigned long long)done,
         (unsigned long long)(done * load.block), (unsigned long long)micros);
  PrintLatencies("latency", &load.operation_latencies);
  printf(",");
  PrintLatencies("sync", &load.sync_latencies);
  printf("}\n");
  return 0;
}
