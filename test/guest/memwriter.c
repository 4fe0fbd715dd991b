// Dirties guest memory at a known rate, in a way that shows damage.
//
//   memwriter --pages-per-s N --working-set PAGES [--random] [--check] [--words W] [--compute TAG]
//
// Each write stamps one page with the next sequence number: the number itself
// in the page's first and last word, and values derived from it and the page's
// index in W more words, whose places change with the number. The program also
// keeps, in other pages, the sequence number each page must show. A restored
// memory that mixes two moments therefore contradicts itself, and with --check
// every page is verified just before it is written again. SIGUSR1 verifies the
// whole working set at once.
//
// /run/memwriter holds one line of fixed length, rewritten several times a second:
//   written=… laps=… checked=… full_checks=… errors=…
// An error is also printed on the console, once per page found damaged.
//
// With --compute it never sleeps: between its writes it computes, and counts what
// it has done in a page of its own, which whoever can read guest RAM finds by its
// first words (the text and TAG) and reads without the guest taking part. So the
// work that a guest gets done can be measured and is not disturbed by the measuring.
// After a first second at the given rate, writes come at a fixed number to a lot of
// work: a guest that is slowed down writes less, too, and its count is all it does.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { kPageBytes = 4096, kWordsPerPage = kPageBytes / 8, kSliceNs = 10 * 1000 * 1000 };
static const uint64_t kErrorsPrintedMax = 100;

// First in a page of its own; 64-bit words after the text, little endian.
struct WorkPage {
  char text[24];
  uint64_t tag;
  volatile uint64_t work;  // lots of kMixesPerWork
};
static const char kWorkPageText[24] = "HOLDFAST-MEMWRITER-WORK";
enum { kMixesPerWork = 4096 };

struct Writer {
  uint64_t* pages;      // working_set pages
  uint64_t* expected;   // sequence number each page must show
  uint64_t working_set;
  unsigned words;
  uint64_t position;
  uint64_t random_state;
  uint64_t sequence;
  uint64_t laps;
  uint64_t checked;
  uint64_t full_checks;
  uint64_t errors;
};

static volatile sig_atomic_t g_full_check_wanted;

static void WantFullCheck(int signal_number) {
  (void)signal_number;
  g_full_check_wanted = 1;
}

// splitmix64's finalizer: every input bit changes half of the output's.
static uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Never the first or the last word: these hold the sequence number.
static unsigned WordPlace(uint64_t sequence, unsigned n) {
  return 1 + (unsigned)((Mix(sequence) + (uint64_t)n * 61) % (kWordsPerPage - 2));
}

static void Stamp(struct Writer* writer, uint64_t index) {
  uint64_t* page = writer->pages + index * kWordsPerPage;
  const uint64_t sequence = ++writer->sequence;
  const uint64_t value = Mix(sequence ^ (index << 32));
  page[0] = sequence;
  for (unsigned n = 0; n < writer->words; n++) page[WordPlace(sequence, n)] = value;
  page[kWordsPerPage - 1] = sequence;
  writer->expected[index] = sequence;
}

static void Check(struct Writer* writer, uint64_t index) {
  const uint64_t* page = writer->pages + index * kWordsPerPage;
  const uint64_t sequence = writer->expected[index];
  writer->checked++;
  bool sound = page[0] == sequence && page[kWordsPerPage - 1] == sequence;
  if (sequence != 0) {
    const uint64_t value = Mix(sequence ^ (index << 32));
    for (unsigned n = 0; n < writer->words; n++) sound &= page[WordPlace(sequence, n)] == value;
  }
  if (sound) return;
  if (writer->errors++ < kErrorsPrintedMax) {
    fprintf(stderr, "MEMWRITER-ERROR page=%llu expected=%llu first=%llu last=%llu\n",
            (unsigned long long)index, (unsigned long long)sequence, (unsigned long long)page[0],
            (unsigned long long)page[kWordsPerPage - 1]);
  }
}

// Writes the next page of the working set.
static void WriteNext(struct Writer* writer, bool random_order, bool check) {
  uint64_t index = writer->position;
  if (random_order) {
    writer->random_state += 0x9e3779b97f4a7c15u;
    index = Mix(writer->random_state) % writer->working_set;
  }
  if (check) Check(writer, index);
  Stamp(writer, index);
  if (++writer->position == writer->working_set) {
    writer->position = 0;
    writer->laps++;
  }
}

static void CheckAllIfWanted(struct Writer* writer) {
  if (!g_full_check_wanted) return;
  g_full_check_wanted = 0;
  for (uint64_t index = 0; index < writer->working_set; index++) Check(writer, index);
  writer->full_checks++;
}

static void Report(const struct Writer* writer, int fd) {
  char line[160];
  const int length = snprintf(line, sizeof line,
                              "written=%020llu laps=%020llu checked=%020llu full_checks=%010llu errors=%010llu\n",
                              (unsigned long long)writer->sequence, (unsigned long long)writer->laps,
                              (unsigned long long)writer->checked, (unsigned long long)writer->full_checks,
                              (unsigned long long)writer->errors);
  if (pwrite(fd, line, (size_t)length, 0) != length) {
    perror("memwriter: /run/memwriter");
    exit(1);
  }
}

static void* AllocatePages(uint64_t bytes) {
  void* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    perror("memwriter: mmap");
    exit(1);
  }
  // A huge page would hide that single pages are written.
  madvise(memory, bytes, MADV_NOHUGEPAGE);
  return memory;
}

static uint64_t NowNs(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

// Sleeps until the deadline and returns it. One that has long passed (the VM
// was paused, or failed over) is forgotten: the rate goes on from now, it never
// catches up in a burst that no setting asked for.
static uint64_t WaitUntil(uint64_t deadline_ns) {
  const uint64_t now_ns = NowNs();
  if (now_ns > deadline_ns + kSliceNs) return now_ns;
  const struct timespec until = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
                                 .tv_nsec = (long)(deadline_ns % 1000000000u)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
  }
  return deadline_ns;
}

static void Compute(struct WorkPage* page) {
  static volatile uint64_t result;  // so that the computation isn't optimised away
  uint64_t value = result;
  for (unsigned n = 0; n < kMixesPerWork; n++) value = Mix(value + n);
  result = value;
  page->work++;
}

static uint64_t NumberArgument(const char* name, const char* text) {
  char* end = NULL;
  errno = 0;
  const uint64_t value = text == NULL ? 0 : strtoull(text, &end, 10);
  if (text == NULL || errno != 0 || end == text || *end != '\0') {
    fprintf(stderr, "memwriter: %s needs a number\n", name);
    exit(2);
  }
  return value;
}

// Goes on at the proportion of writes to work that has come about so far.
static _Noreturn void ComputeForEver(struct Writer* writer, struct WorkPage* page, bool random_order, int report_fd) {
  const uint64_t pages = writer->sequence;
  const uint64_t work = page->work > 0 ? page->work : 1;
  uint64_t owed = 0;  // pages, times work
  for (uint64_t lot = 0;; lot++) {
    Compute(page);
    for (owed += pages; owed >= work; owed -= work) WriteNext(writer, random_order, false);
    CheckAllIfWanted(writer);
    if (lot % work == 0) Report(writer, report_fd);  // once a second or so
  }
}

int main(int argc, char** argv) {
  uint64_t pages_per_s = 5000;
  bool random_order = false;
  bool check = false;
  bool compute = false;
  uint64_t tag = 0;
  struct Writer writer = {.working_set = 8192, .words = 6, .random_state = 1};
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--pages-per-s") == 0) {
      pages_per_s = NumberArgument(argv[i], argv[i + 1]), i++;
    } else if (strcmp(argv[i], "--working-set") == 0) {
      writer.working_set = NumberArgument(argv[i], argv[i + 1]), i++;
    } else if (strcmp(argv[i], "--words") == 0) {
      writer.words = (unsigned)NumberArgument(argv[i], argv[i + 1]), i++;
    } else if (strcmp(argv[i], "--compute") == 0) {
      compute = true;
      tag = NumberArgument(argv[i], argv[i + 1]), i++;
    } else if (strcmp(argv[i], "--random") == 0) {
      random_order = true;
    } else if (strcmp(argv[i], "--check") == 0) {
      check = true;
    } else {
      fprintf(stderr,
              "usage: memwriter --pages-per-s N --working-set PAGES [--random] [--check] [--words W] [--compute TAG]\n");
      return 2;
    }
  }
  if (compute && pages_per_s == 0) {
    fprintf(stderr, "memwriter: --compute needs a rate\n");
    return 2;
  }
  if (writer.working_set == 0 || writer.words > kWordsPerPage - 2) {
    fprintf(stderr, "memwriter: --working-set must be at least 1, --words at most %d\n", kWordsPerPage - 2);
    return 2;
  }

  writer.pages = AllocatePages(writer.working_set * kPageBytes);
  writer.expected = AllocatePages((writer.working_set * 8 + kPageBytes - 1) / kPageBytes * kPageBytes);
  struct WorkPage* const work_page = AllocatePages(kPageBytes);
  if (compute) {
    memcpy(work_page->text, kWorkPageText, sizeof kWorkPageText);
    work_page->tag = tag;
  }
  const int report_fd = open("/run/memwriter", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (report_fd < 0) {
    perror("memwriter: /run/memwriter");
    return 1;
  }
  struct sigaction action = {.sa_handler = WantFullCheck, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, NULL);

  const uint64_t slices_per_s = 1000000000u / kSliceNs;
  uint64_t carried = 0;  // pages owed, times slices_per_s: slow rates must not round to none
  uint64_t deadline_ns = NowNs();
  for (uint64_t slice = 0;; slice++) {
    carried += pages_per_s;
    uint64_t quota = pages_per_s == 0 ? 16384 : carried / slices_per_s;
    carried %= slices_per_s;
    while (quota-- > 0) WriteNext(&writer, random_order, check);
    CheckAllIfWanted(&writer);
    if (slice % 20 == 0) Report(&writer, report_fd);
    if (compute && slice >= slices_per_s) {
      ComputeForEver(&writer, work_page, random_order, report_fd);
    } else if (compute) {
      while (NowNs() < deadline_ns + kSliceNs) Compute(work_page);
      deadline_ns = NowNs();
    } else if (pages_per_s != 0) {
      deadline_ns = WaitUntil(deadline_ns + kSliceNs);
    }
  }
}
