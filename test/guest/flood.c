// Sends datagrams as fast as the kernel takes them, and says on the console how far it is.
//
//   flood ADDRESS PORT COUNT BYTES
//
// Each has BYTES bytes, and ends in `: N`, from `: 1` on. The send blocks: who floods
// a network that takes nothing any more stands still. The report comes from another
// process, five times a second, so that it goes on meanwhile; last comes FLOOD-OVER:
//   FLOOD-SENT N

#include <arpa/inet.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { kBytesMax = 1472, kReportUs = 200 * 1000 };  // of payload in an Ethernet frame

static void Fail(const char* what) {
  perror(what);
  exit(1);
}

static pid_t Report(const volatile uint64_t* sent) {
  const pid_t reporter = fork();
  if (reporter < 0) Fail("fork");
  if (reporter > 0) return reporter;
  for (;;) {
    printf("FLOOD-SENT %llu\n", (unsigned long long)*sent);
    fflush(stdout);
    usleep(kReportUs);
  }
}

int main(int count, char** arguments) {
  if (count != 5) {
    fprintf(stderr, "usage: flood ADDRESS PORT COUNT BYTES\n");
    return 2;
  }
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arguments[2]))};
  if (inet_pton(AF_INET, arguments[1], &to.sin_addr) != 1) Fail(arguments[1]);
  const uint64_t datagrams = strtoull(arguments[3], NULL, 10);
  const size_t bytes = strtoull(arguments[4], NULL, 10);
  if (bytes < 32 || bytes > kBytesMax) Fail(arguments[4]);

  const int out = socket(AF_INET, SOCK_DGRAM, 0);
  if (out < 0 || connect(out, (struct sockaddr*)&to, sizeof to) != 0) Fail("socket");
  volatile uint64_t* sent =
      mmap(NULL, sizeof *sent, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (sent == MAP_FAILED) Fail("mmap");
  const pid_t reporter = Report(sent);

  char datagram[kBytesMax];
  for (uint64_t number = 1; number <= datagrams; number++) {
    char end[32];
    const int length = snprintf(end, sizeof end, ": %llu", (unsigned long long)number);
    memset(datagram, 'x', bytes);
    memcpy(datagram + bytes - length, end, (size_t)length);
    if (send(out, datagram, bytes, 0) != (ssize_t)bytes) Fail("send");
    *sent = number;
  }
  kill(reporter, SIGKILL);
  waitpid(reporter, NULL, 0);
  printf("FLOOD-SENT %llu\nFLOOD-OVER\n", (unsigned long long)datagrams);
  return 0;
}
