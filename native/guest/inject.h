// Runs one system call inside another process, on a thread of its own.
//
//   SEIZE ─► INTERRUPT ─► stopped inside a system call?  no ─► DETACH, next thread
//                            │ yes
//                  save registers and signal mask
//                  aim at the same `syscall` instruction, step over it once
//                  restore both ─► DETACH: the kernel restarts what we interrupted
//
// The tracer is a short-lived process of its own that shares our memory
// (clone with CLONE_VM | CLONE_VFORK), for two reasons: if we are killed in the
// middle it still puts the registers back, and the stops of a QEMU that is our
// own child never reach node's waitpid, which would take them for its exit.
#pragma once

#include <sys/types.h>

#include <array>

#include "base/result.h"

namespace holdfast {

// What the call returned in the target: >= 0, or -errno. An Error means that
// it was not run. The process continues undisturbed in either case.
Result<long> InjectSyscall(pid_t pid, long number, const std::array<unsigned long, 6>& arguments);

}  // namespace holdfast
