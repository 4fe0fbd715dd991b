// Reads files of which nobody knows when they answer: a disk over a network that is
// gone lets a read hang in the kernel, where nothing ends it. So a thread of its own
// reads, and who asked waits for as long as it likes.
//
//   Read ─► extents ─► thread: pread, pread … ─┬─ all read: their bytes
//            │                                 └─ a deadline: what was read until then
//            └─ the thread still hangs in an earlier call: nothing, at once
//
// What it reads to, and from, is its own: one that is left behind harms nobody.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/descriptor.h"
#include "base/thread.h"

namespace holdfast {

class PatientReader {
 public:
  struct Extent {
    std::shared_ptr<const Descriptor> file;
    uint64_t offset;
    size_t bytes;
  };
  // As pread(2).
  using ReadSome = ssize_t (*)(int file, void* target, size_t bytes, off_t offset);

  explicit PatientReader(ReadSome read_some);
  PatientReader(const PatientReader&) = delete;
  PatientReader& operator=(const PatientReader&) = delete;
  // Leaves a thread that hangs: it ends when the kernel lets it. Until then it has a
  // moment, from Stop() on.
  ~PatientReader();

  // No read any more: before several are destroyed, so that their moments are one.
  void Stop();

  struct Got {
    // By extent: read from its begin.
    std::vector<size_t> bytes;
    // The extents' bytes, one after the other. Good until the next call.
    const std::byte* content;
  };
  Got Read(std::vector<Extent> extents, double wait_ms);

 private:
  struct Work;
  struct Shared;
  static void Loop(Shared& shared, ReadSome read_some);

  const ReadSome read_some_;
  std::shared_ptr<Shared> shared_;
  std::shared_ptr<Work> work_;  // the latest
  Thread thread_;               // from the first call on
  std::optional<std::chrono::steady_clock::time_point> ends_by_;  // since Stop()
};

}  // namespace holdfast
