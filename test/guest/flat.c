// A guest without an operating system: 32-bit, flat, one vCPU, no interrupts,
// no devices but COM1. It runs where a whole kernel does not (a paravirtual
// KVM inside a virtual machine), so that the KVM path can be tested there.
//
//   -kernel flat.elf -append "pages=4096 base_mb=16 spin=0 laps_per_dot=64"
//
// It prints HOLDFAST-FLAT-READY, then writes an increasing counter into each
// page, for ever: into the page's first word, and into one more word whose
// place moves by one with every lap. A dot is printed every laps_per_dot laps.
// `spin` pause instructions after each page bound the rate at which it dirties.
//
// Loaded by QEMU's Multiboot 1 loader (the header is in flat.ld's first section).

#include <stdint.h>

enum {
  kPageWords = 1024,
  kCom1 = 0x3f8,
  kMultibootMagic = 0x1badb002,
  kCommandLineValid = 1 << 2,
  kMemoryValid = 1 << 0,
};

__attribute__((section(".multiboot"), used, aligned(4))) static const uint32_t kHeader[3] = {
    kMultibootMagic, kMemoryValid | 2, -(uint32_t)(kMultibootMagic + (kMemoryValid | 2))};

struct MultibootInfo {
  uint32_t flags;
  uint32_t memory_lower_kb;
  uint32_t memory_upper_kb;  // from 1 MiB upwards
  uint32_t boot_device;
  uint32_t command_line;
};

__attribute__((aligned(16), used)) static uint8_t g_stack[16384];

// Multiboot enters with paging off, interrupts off and no stack.
__asm__(
    ".global _start\n"
    "_start:\n"
    "  movl $g_stack + 16384, %esp\n"
    "  pushl %ebx\n"
    "  call Main\n"
    "1: hlt\n"
    "  jmp 1b\n");

static void Out(uint16_t port, uint8_t value) {
  __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static uint8_t In(uint16_t port) {
  uint8_t value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

static void PrintCharacter(char c) {
  while ((In(kCom1 + 5) & 0x20) == 0) {
  }
  Out(kCom1, (uint8_t)c);
}

static void Print(const char* text) {
  while (*text != '\0') PrintCharacter(*text++);
}

// Value of "name=" in the command line, or the default.
static uint32_t Parameter(const char* line, const char* name, uint32_t value_default) {
  for (const char* at = line; *at != '\0'; at++) {
    if (at != line && at[-1] != ' ') continue;
    const char* a = at;
    const char* b = name;
    while (*b != '\0' && *a == *b) a++, b++;
    if (*b != '\0' || *a != '=') continue;
    uint32_t value = 0;
    for (a++; *a >= '0' && *a <= '9'; a++) value = value * 10 + (uint32_t)(*a - '0');
    return value;
  }
  return value_default;
}

__attribute__((used)) void Main(const struct MultibootInfo* info) {
  const char* line = (info->flags & kCommandLineValid) ? (const char*)(uintptr_t)info->command_line : "";
  uint32_t pages = Parameter(line, "pages", 4096);
  const uint32_t base_mb = Parameter(line, "base_mb", 16);
  const uint32_t spin = Parameter(line, "spin", 0);
  const uint32_t laps_per_dot = Parameter(line, "laps_per_dot", 64);

  // 8n1, 115200, FIFO on.
  Out(kCom1 + 3, 0x80), Out(kCom1, 1), Out(kCom1 + 1, 0), Out(kCom1 + 3, 0x03), Out(kCom1 + 2, 0x07);

  const uint32_t room = ((info->memory_upper_kb >> 10) + 1 - base_mb) << 8;
  if (pages > room) {
    Print("HOLDFAST-FLAT-ERROR more pages than RAM\r\n");
    return;
  }
  Print("HOLDFAST-FLAT-READY\r\n");

  volatile uint32_t* const base = (volatile uint32_t*)(uintptr_t)(base_mb << 20);
  uint32_t counter = 0;
  for (uint32_t lap = 0;; lap++) {
    const uint32_t offset = 1 + lap % (kPageWords - 1);
    for (uint32_t page = 0; page < pages; page++) {
      volatile uint32_t* const words = base + page * kPageWords;
      counter++;
      words[0] = counter;
      words[offset] = counter;
      for (uint32_t n = 0; n < spin; n++) __asm__ volatile("pause");
    }
    if (laps_per_dot != 0 && lap % laps_per_dot == laps_per_dot - 1) PrintCharacter('.');
  }
}
