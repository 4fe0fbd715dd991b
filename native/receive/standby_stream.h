// The one stream that a standby QEMU is given. It listens on a Unix socket
// (migrate-incoming unix:PATH), loads what it reads, and runs when all has come:
// prefix, then device state.
//
//   Begin(prefix) ──► connect, prefix      long before the takeover; QEMU has loaded it, and waits
//   Finish(prefix, state) ─────► state     or both, where nothing was begun
//
// The prefix is most of the stream, and takes QEMU longer than the devices. A QEMU
// loads once: one that has another prefix than the checkpoint's is of no use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/descriptor.h"
#include "base/result.h"

namespace holdfast {

class StandbyStream {
 public:
  // Never changes: two that are one object are the same.
  using Prefix = std::shared_ptr<const std::vector<std::byte>>;
  static bool Same(const Prefix& a, const Prefix& b);

  // `path`: where the standby listens, or is about to.
  explicit StandbyStream(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }

  // Writes the prefix, once, and leaves the connection open: one that is closed
  // before the end ends QEMU. Where nobody could be connected to, nothing is begun.
  Status Begin(const Prefix& prefix);

  // Writes what is lacking, and closes. Waits for a Begin that is under way. Where
  // it fails with kStateLoad this standby is not to be used any more, but it has
  // not run. None: the state is a whole stream by itself.
  Result<uint64_t> Finish(const Prefix& prefix, std::span<const std::byte> state);

  // Any thread, any number of times: whoever writes gives up, and so does whoever comes.
  void Cancel() { cancel_.Cancel(); }

 private:
  enum class Stage { kNothing, kPrefix, kBroken, kEnded };

  Status Connect();
  Status WriteAll(std::span<const std::byte> bytes);
  Error Failed(const char* syscall) const;
  Error Cancelled() const;

  const std::string path_;
  CancelSignal cancel_;
  std::mutex turn_;  // of who writes; guards what is below
  Stage stage_ = Stage::kNothing;
  Descriptor socket_;
  Prefix written_;
};

}  // namespace holdfast
