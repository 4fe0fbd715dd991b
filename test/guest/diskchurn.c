// Works on files as a busy service does, and knows what each of them must hold.
//
//   diskchurn --dir DIR [--steps-per-s N] [--files N] [--trim-every STEPS]
//
// Each step takes one file at random and creates it, writes blocks of it, appends
// to it, punches a hole, truncates it, or verifies and deletes it; every other
// change is followed by fsync. Now and then the whole file system is trimmed
// (FITRIM). Each block's content follows from file, block and a sequence number
// that the program keeps in its memory. So after a takeover memory and disk must be
// of the same instant: reads for verification bypass the page cache (O_DIRECT).
// SIGUSR1 verifies all files at once.
//
// /run/diskchurn holds one line of fixed length, rewritten several times a second:
//   steps=… fsyncs=… trims=… trimmed_bytes=… checked=… full_checks=… errors=…
// where `checked` counts blocks. An error is also printed on standard error.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { kBlockBytes = 4096, kWordsPerBlock = kBlockBytes / 8, kBlocksMax = 64, kFilesMax = 4096 };
static const uint64_t kErrorsPrintedMax = 100;

struct File {
  bool exists;
  unsigned blocks;
  uint64_t sequence[kBlocksMax];  // of the write that each block must show; 0: a hole
};

struct Churn {
  const char* dir;
  struct File* files;
  uint64_t file_count;
  uint64_t random_state;
  uint64_t sequence;
  uint64_t* buffer;  // kBlocksMax blocks, aligned for O_DIRECT
  uint64_t steps, fsyncs, trims, trimmed_bytes, checked, full_checks, errors;
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

static uint64_t Random(struct Churn* churn, uint64_t below) {
  churn->random_state += 0x9e3779b97f4a7c15u;
  return Mix(churn->random_state) % below;
}

// What is needed can't be done: the disk is full or fails. Not a damaged file, but an end of the test all the same.
static _Noreturn void Fail(const char* what, const char* path) {
  fprintf(stderr, "DISKCHURN-ERROR %s %s: %s\n", what, path, strerror(errno));
  exit(1);
}

static void FillBlock(uint64_t* words, uint64_t file, unsigned block, uint64_t sequence) {
  const uint64_t seed = Mix(sequence ^ (file << 32) ^ ((uint64_t)block << 52));
  for (unsigned n = 0; n < kWordsPerBlock; n++) words[n] = seed + n * sequence;
  words[0] = sequence;
}

static bool BlockIsSound(const uint64_t* words, uint64_t file, unsigned block, uint64_t sequence) {
  if (sequence == 0) {
    for (unsigned n = 0; n < kWordsPerBlock; n++) {
      if (words[n] != 0) return false;
    }
    return true;
  }
  uint64_t expected[kWordsPerBlock];
  FillBlock(expected, file, block, sequence);
  return memcmp(words, expected, kBlockBytes) == 0;
}

static const char* PathOf(const struct Churn* churn, uint64_t index) {
  static char path[512];
  snprintf(path, sizeof path, "%s/file%04llu", churn->dir, (unsigned long long)index);
  return path;
}

static void Complain(struct Churn* churn, uint64_t index, const char* what, unsigned block, uint64_t found) {
  if (churn->errors++ >= kErrorsPrintedMax) return;
  fprintf(stderr, "DISKCHURN-ERROR file=%llu %s block=%u expected=%llu found=%llu\n", (unsigned long long)index, what,
          block, (unsigned long long)churn->files[index].sequence[block], (unsigned long long)found);
}

static void Verify(struct Churn* churn, uint64_t index) {
  struct File* file = &churn->files[index];
  const char* path = PathOf(churn, index);
  const int fd = open(path, O_RDONLY | O_DIRECT);
  if (fd < 0) {
    if (file->exists || errno != ENOENT) Complain(churn, index, strerror(errno), 0, 0);
    return;
  }
  struct stat status;
  if (fstat(fd, &status) != 0) Fail("fstat", path);
  const ssize_t bytes = pread(fd, churn->buffer, (size_t)kBlocksMax * kBlockBytes, 0);
  close(fd);
  if (!file->exists || status.st_size != (off_t)file->blocks * kBlockBytes || bytes != status.st_size) {
    Complain(churn, index, file->exists ? "size" : "was deleted", file->blocks > 0 ? file->blocks - 1 : 0,
             (uint64_t)status.st_size);
    return;
  }
  for (unsigned block = 0; block < file->blocks; block++) {
    const uint64_t* words = churn->buffer + (size_t)block * kWordsPerBlock;
    churn->checked++;
    if (!BlockIsSound(words, index, block, file->sequence[block])) Complain(churn, index, "content", block, words[0]);
  }
}

static void VerifyAll(struct Churn* churn) {
  for (uint64_t index = 0; index < churn->file_count; index++) Verify(churn, index);
  churn->full_checks++;
}

// Writes [first, first + count), which may lie beyond the end.
static void WriteBlocks(struct Churn* churn, uint64_t index, int fd, unsigned first, unsigned count) {
  struct File* file = &churn->files[index];
  for (unsigned n = 0; n < count; n++) {
    file->sequence[first + n] = ++churn->sequence;
    FillBlock(churn->buffer + (size_t)n * kWordsPerBlock, index, first + n, churn->sequence);
  }
  const size_t bytes = (size_t)count * kBlockBytes;
  if (pwrite(fd, churn->buffer, bytes, (off_t)first * kBlockBytes) != (ssize_t)bytes) Fail("write", PathOf(churn, index));
  if (file->blocks < first + count) file->blocks = first + count;
}

static void Delete(struct Churn* churn, uint64_t index) {
  Verify(churn, index);
  if (unlink(PathOf(churn, index)) != 0) Fail("unlink", PathOf(churn, index));
  churn->files[index] = (struct File){.exists = false};
}

static void Change(struct Churn* churn, uint64_t index, int fd) {
  struct File* file = &churn->files[index];
  const unsigned first = (unsigned)Random(churn, file->blocks);
  const unsigned count = 1 + (unsigned)Random(churn, file->blocks - first);
  switch (Random(churn, 6)) {
    case 0:  // append
      if (file->blocks < kBlocksMax) {
        WriteBlocks(churn, index, fd, file->blocks, 1 + (unsigned)Random(churn, kBlocksMax - file->blocks));
      }
      return;
    case 1:
      if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first * kBlockBytes,
                    (off_t)count * kBlockBytes) != 0) {
        Fail("punch", PathOf(churn, index));
      }
      for (unsigned n = 0; n < count; n++) file->sequence[first + n] = 0;
      return;
    case 2:
      if (ftruncate(fd, (off_t)(first + 1) * kBlockBytes) != 0) Fail("truncate", PathOf(churn, index));
      file->blocks = first + 1;
      return;
    default:
      WriteBlocks(churn, index, fd, first, count);
  }
}

static void Step(struct Churn* churn) {
  const uint64_t index = Random(churn, churn->file_count);
  struct File* file = &churn->files[index];
  churn->steps++;
  if (file->exists && Random(churn, 4) == 0) {
    Delete(churn, index);
    return;
  }
  const int fd = open(PathOf(churn, index), O_RDWR | (file->exists ? 0 : O_CREAT | O_EXCL), 0644);
  if (fd < 0) Fail("open", PathOf(churn, index));
  if (file->exists) {
    Change(churn, index, fd);
  } else {
    file->exists = true;
    WriteBlocks(churn, index, fd, 0, 1 + (unsigned)Random(churn, kBlocksMax));
  }
  if (Random(churn, 2) == 0) {
    if (fsync(fd) != 0) Fail("fsync", PathOf(churn, index));
    churn->fsyncs++;
  }
  close(fd);
}

static void Trim(struct Churn* churn) {
  const int fd = open(churn->dir, O_RDONLY | O_DIRECTORY);
  if (fd < 0) Fail("open", churn->dir);
  struct fstrim_range range = {.start = 0, .len = UINT64_MAX, .minlen = 0};
  if (ioctl(fd, FITRIM, &range) == 0) {
    churn->trims++;
    churn->trimmed_bytes += range.len;
  } else if (errno != EOPNOTSUPP) {
    Fail("trim", churn->dir);
  }
  close(fd);
}

static void Report(const struct Churn* churn, int fd) {
  char line[256];
  const int length = snprintf(
      line, sizeof line,
      "steps=%020llu fsyncs=%020llu trims=%010llu trimmed_bytes=%020llu checked=%020llu full_checks=%010llu "
      "errors=%010llu\n",
      (unsigned long long)churn->steps, (unsigned long long)churn->fsyncs, (unsigned long long)churn->trims,
      (unsigned long long)churn->trimmed_bytes, (unsigned long long)churn->checked,
      (unsigned long long)churn->full_checks, (unsigned long long)churn->errors);
  if (pwrite(fd, line, (size_t)length, 0) != length) Fail("write", "/run/diskchurn");
}

static uint64_t NumberArgument(const char* name, const char* text) {
  char* end = NULL;
  errno = 0;
  const uint64_t value = text == NULL ? 0 : strtoull(text, &end, 10);
  if (text == NULL || errno != 0 || end == text || *end != '\0') {
    fprintf(stderr, "diskchurn: %s needs a number\n", name);
    exit(2);
  }
  return value;
}

int main(int argc, char** argv) {
  uint64_t steps_per_s = 50;
  uint64_t trim_every = 200;
  struct Churn churn = {.file_count = 24, .random_state = 1};
  for (int i = 1; i < argc; i += 2) {
    if (strcmp(argv[i], "--dir") == 0) {
      churn.dir = argv[i + 1];
    } else if (strcmp(argv[i], "--steps-per-s") == 0) {
      steps_per_s = NumberArgument(argv[i], argv[i + 1]);
    } else if (strcmp(argv[i], "--files") == 0) {
      churn.file_count = NumberArgument(argv[i], argv[i + 1]);
    } else if (strcmp(argv[i], "--trim-every") == 0) {
      trim_every = NumberArgument(argv[i], argv[i + 1]);
    } else {
      churn.dir = NULL;
      break;
    }
  }
  if (churn.dir == NULL || churn.file_count == 0 || churn.file_count > kFilesMax || steps_per_s == 0) {
    fprintf(stderr, "usage: diskchurn --dir DIR [--steps-per-s N] [--files N] [--trim-every STEPS]\n");
    return 2;
  }
  churn.files = calloc(churn.file_count, sizeof *churn.files);
  if (churn.files == NULL || posix_memalign((void**)&churn.buffer, kBlockBytes, (size_t)kBlocksMax * kBlockBytes) != 0) {
    Fail("memory for", churn.dir);
  }
  // What an earlier boot left is nothing that this one knows.
  if (mkdir(churn.dir, 0755) != 0 && errno != EEXIST) Fail("mkdir", churn.dir);
  for (uint64_t index = 0; index < churn.file_count; index++) {
    if (unlink(PathOf(&churn, index)) != 0 && errno != ENOENT) Fail("unlink", PathOf(&churn, index));
  }
  const int report_fd = open("/run/diskchurn", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (report_fd < 0) Fail("open", "/run/diskchurn");
  struct sigaction action = {.sa_handler = WantFullCheck, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, NULL);

  // Steps that take longer than their share make it slower; a rate is not made up for.
  const uint64_t pause_ns = 1000000000u / steps_per_s;
  const struct timespec pause = {.tv_sec = (time_t)(pause_ns / 1000000000u), .tv_nsec = (long)(pause_ns % 1000000000u)};
  for (;;) {
    Step(&churn);
    if (trim_every > 0 && churn.steps % trim_every == 0) Trim(&churn);
    if (g_full_check_wanted) {
      g_full_check_wanted = 0;
      VerifyAll(&churn);
    }
    Report(&churn, report_fd);
    nanosleep(&pause, NULL);
  }
}
