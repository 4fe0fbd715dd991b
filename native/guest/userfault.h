// A userfaultfd that acts on QEMU's address space, held by us.
//
//   Acquire: adopt one that is open in QEMU already (left by a crash of ours),
//            else make QEMU open one (guest/inject.h); fetch it by pidfd_getfd;
//            UFFDIO_API; UFFDIO_REGISTER of guest RAM, write-protect mode.
//   AcquireMissing: the same with a new one and in missing mode, of a VM whose
//            memory is still to come (postcopy/fault_server.h). It also has to
//            see the kernel's own accesses: QEMU needs the right to that.
//   Release: UFFDIO_UNREGISTER; make QEMU close its copy.
//
// Destroying without Release leaves QEMU's copy open, with tracking armed: the
// guest runs on undisturbed, and the next Acquire adopts it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>

#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

class Userfault {
 public:
  static Result<std::unique_ptr<Userfault>> Acquire(pid_t pid, uint64_t address, uint64_t size);
  static Result<std::unique_ptr<Userfault>> AcquireMissing(pid_t pid, uint64_t address,
                                                           uint64_t size);

  // Puts QEMU back as it was. A QEMU that has ended counts as released.
  Status Release();

  int fd() const { return event_.get(); }
  bool adopted() const { return adopted_; }
  double inject_ms() const { return inject_ms_; }
  // The process has ended; false while it is a stopped or running process.
  bool process_ended() const { return EndsWithin(0); }

 private:
  enum class Purpose { kTrackWrites, kServeMissing };
  Userfault(pid_t pid, Descriptor process, uint64_t address, uint64_t size, Purpose purpose)
      : pid_(pid),
        process_(std::move(process)),
        address_(address),
        size_(size),
        purpose_(purpose) {}
  static Result<std::unique_ptr<Userfault>> Open(pid_t pid, uint64_t address, uint64_t size,
                                                 Purpose purpose);

  Result<bool> Adopt();
  Status Inject();
  bool Enable(int event_fd) const;
  Status Register(int event_fd) const;
  bool EndsWithin(int limit_ms) const;

  const pid_t pid_;
  Descriptor process_;  // pidfd: proof against reuse of the process id
  const uint64_t address_;
  const uint64_t size_;
  const Purpose purpose_;
  Descriptor event_;    // our copy of the userfaultfd
  int remote_fd_ = -1;  // its number in QEMU
  bool adopted_ = false;
  double inject_ms_ = 0;
};

}  // namespace holdfast
