// The receiving side of the bulk connection: listening socket, one session,
// staging, atomic commit, background apply to the replica file.
//
//   bulk sockets ──► a receive thread each ──► staging of epoch N
//                        │ all parts verified: N is the checkpoint (one mutex)
//                        ├──► ACK(N)      unless fenced
//                        └──► apply thread: staging N ──► replica
//
// A partly received epoch is dropped when the connection ends. Base rounds go
// straight to the replica. fence() and commit share one mutex: an epoch is
// either committed, acknowledged and going to be applied, or none of these.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"
#include "receive/reference_disks.h"

namespace holdfast {

class DiskStore;
class PageLinks;
class StandbyStream;

struct ReceiverEvent {
  enum class Type { kConnected, kRound, kPrefix, kCommitted, kApplied, kDisconnected };
  Type type = Type::kConnected;
  uint64_t epoch = 0;
  uint64_t pages = 0;
  uint64_t zero_pages = 0;
  uint64_t bytes = 0;
  double millis = 0;  // receive time (kCommitted) or apply time (kApplied)
  // kCommitted, where the session delivers it: the epoch's device state.
  std::shared_ptr<const std::vector<std::byte>> state{};
  uint64_t prefix = 0;  // kCommitted: which the checkpoint has; kPrefix: which came; see Feed()
  // kCommitted: what the receive threads of all streams spent since the epoch before.
  double cpu_ms = 0;
  double digest_ms = 0;   // of the receive time
  uint64_t syscalls = 0;  // that brought bytes
  Error error{};          // kDisconnected only
};

class Receiver {
 public:
  // Called on the receiver's threads; must not block and must not call back.
  using EventSink = std::function<void(const ReceiverEvent&)>;

  struct Session {
    std::array<std::byte, 32> token;
    std::string ram_path;
    uint64_t ram_bytes = 0;
    uint32_t page_size = 4096;
    uint64_t epoch_bytes_max = 0;
    uint64_t device_bytes_max = 0;
    bool verify = true;          // false: no digest, whatever the primary wishes
    bool deliver_state = false;  // with kCommitted events
    bool gated = false;          // committed epochs are applied only as AllowApplies() says
    std::shared_ptr<DiskStore> disks{};  // open; none: the VM has no disks
    // To which pages may be referred; at most kReferenceDisksMax.
    std::vector<ReferenceDisks::Disk> reference_disks{};
    bool sparse = false;  // reserve no memory: what is not written stays a hole
  };

  struct Fenced {
    uint64_t epoch = 0;
    double fence_ms = 0;
    bool partial_epoch_dropped = false;
  };

  static Result<std::unique_ptr<Receiver>> Listen(const std::string& host, uint16_t port,
                                                  EventSink sink);
  // Without an address: for connections that come by Adopt.
  static Result<std::unique_ptr<Receiver>> Create(EventSink sink);
  ~Receiver();  // joins its threads; keeps the replica file

  // Takes a connected stream socket in place of one that was accepted: its
  // HELLO is awaited without a time limit. After OpenSession, and not blocking.
  // Its end shows as kDisconnected, also if it never was kConnected.
  void Adopt(Descriptor socket);

  // Connections of the page stream that have shown the session's token, also
  // after it was fenced. Outlives this object.
  std::shared_ptr<PageLinks> page_links() const;

  uint16_t port() const;  // 0 without an address
  double idle_ms() const;  // since the last byte on the bulk connection

  // The following block: call them from a thread that may.
  Status OpenSession(const Session& session);
  // Of the session: which of its reference disks this side has.
  std::vector<bool> reference_disks() const;
  Result<Fenced> Fence();
  // Begins the standby's stream with the checkpoint's prefix, before the first one with
  // what came ahead of it, and says which that is: those that differ are counted from
  // 1. 0: there is none yet, nothing was written.
  // At any time, beside all other calls but the destructor.
  Result<uint64_t> Feed(StandbyStream& standby);
  struct Written {
    uint64_t bytes = 0;
    double write_ms = 0;
    std::optional<int64_t> clock_advanced_ns{};  // nothing: the guest's clock was left as it is
  };
  // `follow_clock`: the guest's clock goes on by the time since the VM was stopped.
  // It writes what the standby was not given by Feed().
  Result<Written> WriteState(StandbyStream& standby, bool follow_clock = false);
  // To one that was given nothing.
  Result<Written> WriteState(const std::string& socket_path, bool follow_clock = false);
  Status CloseSession();

  // Of a gated session, so many more epochs may be applied. Does not block.
  void AllowApplies(uint64_t epochs);

 private:
  struct Impl;
  explicit Receiver(std::unique_ptr<Impl> impl);
  static Result<std::unique_ptr<Receiver>> Start(Descriptor listener, EventSink sink);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast
