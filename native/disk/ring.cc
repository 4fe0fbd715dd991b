#include "disk/ring.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <bit>
#include <cstring>
#include <new>

#include "base/futex.h"
#include "wire/text.h"

namespace holdfast {
namespace {

bool IsRingSize(uint64_t bytes) {
  return std::has_single_bit(bytes) && bytes >= kRingBytesMin && bytes <= kRingBytesMax;
}

Error NotARing(const std::string& path, const char* why) {
  return Error::Of(ErrorCode::kProtocol, path + " is no log of a disk: " + why);
}

}  // namespace

Result<Ring> Ring::Map(Descriptor file, uint64_t ring_bytes, const std::string& path) {
  const uint64_t whole = kRingHeaderBytes + 2 * ring_bytes;
  void* const room = ::mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) return Error::FromErrno("mmap", "room for the log " + path);
  Mapping mapping(room, whole);
  std::byte* const second = mapping.data() + kRingHeaderBytes + ring_bytes;
  if (::mmap(mapping.data(), kRingHeaderBytes + ring_bytes, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED, file.get(), 0) == MAP_FAILED ||
      ::mmap(second, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file.get(),
             kRingHeaderBytes) == MAP_FAILED) {
    return Error::FromErrno("mmap", "the log " + path);
  }
  return Ring(std::move(file), std::move(mapping), ring_bytes);
}

Result<Ring> Ring::Create(const std::string& path, uint64_t ring_bytes, uint64_t image_bytes) {
  HF_ASSERT(IsRingSize(ring_bytes));
  // A new file under the old name: the old one, shortened, would kill its readers.
  const std::string fresh = path + ".new";
  ::unlink(fresh.c_str());
  Descriptor file(::open(fresh.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.valid()) return Error::FromErrno("open", "creating the log " + fresh);
  if (::ftruncate(file.get(), static_cast<off_t>(kRingHeaderBytes + ring_bytes)) != 0) {
    return Error::FromErrno("ftruncate", "creating the log " + fresh);
  }
  // A page that the file system cannot give is SIGBUS at the first touch.
  if (const int failed = ::posix_fallocate(file.get(), 0, kRingHeaderBytes); failed != 0) {
    errno = failed;
    return Error::FromErrno("fallocate", "memory for the log " + fresh, ErrorCode::kNoSpace);
  }
  auto ring = Map(std::move(file), ring_bytes, fresh);
  if (!ring.ok()) return ring.error();
  auto* const header = new (ring.value().mapping_.data()) RingHeader{};
  header->version = kRingVersion;
  header->header_bytes = kRingHeaderBytes;
  header->ring_bytes = ring_bytes;
  header->image_bytes = image_bytes;
  std::memcpy(header->magic, kRingMagic, sizeof kRingMagic);
  if (::rename(fresh.c_str(), path.c_str()) != 0) {
    return Error::FromErrno("rename", "creating the log " + path);
  }
  return ring;
}

Result<Ring> Ring::Open(const std::string& path) {
  Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!file.valid()) return Error::FromErrno("open", "the log " + path);
  // Only what precedes the atomics is read here, and it does not change any more.
  struct {
    char magic[8];
    uint32_t version, header_bytes;
    uint64_t ring_bytes, image_bytes;
  } start{};
  static_assert(sizeof start == offsetof(RingHeader, image_bytes) + sizeof(uint64_t));
  struct stat status {};
  if (::pread(file.get(), &start, sizeof start, 0) < 0 || ::fstat(file.get(), &status) != 0) {
    return Error::FromErrno("pread", "the log " + path);
  }
  if (std::memcmp(start.magic, kRingMagic, sizeof kRingMagic) != 0) {
    return NotARing(path, "its magic is missing");
  }
  if (start.version != kRingVersion) {
    return NotARing(path, Text("version %u, this addon knows %u", start.version, kRingVersion).c_str());
  }
  if (start.header_bytes != kRingHeaderBytes || !IsRingSize(start.ring_bytes) ||
      static_cast<uint64_t>(status.st_size) != kRingHeaderBytes + start.ring_bytes) {
    return NotARing(path, "its sizes don't fit");
  }
  return Map(std::move(file), start.ring_bytes, path);
}

void Ring::Remove(const std::string& path) const {
  struct stat named {}, own {};
  if (::stat(path.c_str(), &named) != 0 || ::fstat(file_.get(), &own) != 0) return;
  if (named.st_dev == own.st_dev && named.st_ino == own.st_ino) ::unlink(path.c_str());
}

Status Ring::Reserve() {
  const auto bytes = static_cast<off_t>(kRingHeaderBytes + ring_bytes_);
  if (const int failed = ::posix_fallocate(file_.get(), 0, bytes); failed != 0) {
    errno = failed;
    return Error::FromErrno("fallocate", "memory for a disk's log", ErrorCode::kNoSpace);
  }
  return {};
}

// Sleeping and waking: the sleeper says that it sleeps and then looks, the waker
// changes what is looked at and then looks for sleepers; both in one total order
// (seq_cst), so one of them sees the other.

void Ring::Publish(uint64_t head) const {
  RingHeader& shared = header();
  shared.head.store(head);
  shared.head_wakes.fetch_add(1);
  if (shared.head_waits.load() != 0) FutexWakeAll(shared.head_wakes);
}

uint64_t Ring::WaitForHead(uint64_t lsn, int64_t timeout_ms) const {
  RingHeader& shared = header();
  uint64_t head = shared.head.load();
  if (head != lsn) return head;
  shared.head_waits.fetch_add(1);
  const uint32_t wakes = shared.head_wakes.load();
  head = shared.head.load();
  if (head == lsn) {
    FutexWait(shared.head_wakes, wakes, timeout_ms);
    head = shared.head.load();
  }
  shared.head_waits.fetch_sub(1);
  return head;
}

void Ring::WakeReader() const {
  header().head_wakes.fetch_add(1);
  FutexWakeAll(header().head_wakes);
}

void Ring::Free(uint64_t tail) const {
  header().tail.store(tail);
  WakeWriters();
}

void Ring::SetStopPending(bool pending) const {
  header().stop_pending.store(pending ? 1 : 0);
  if (pending) WakeWriters();
}

void Ring::WakeWriters() const {
  RingHeader& shared = header();
  shared.tail_wakes.fetch_add(1);
  if (shared.tail_waits.load() != 0) FutexWakeAll(shared.tail_wakes);
}

}  // namespace holdfast
