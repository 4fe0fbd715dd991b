// The receiving side of the bulk connection: listening socket, one session,
// staging, atomic commit, background apply to the replica file.
//
//   bulk socket ──► receive thread ──► staging of epoch N
//                        │ COMMIT verified: N is the checkpoint (one mutex)
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
#include <string>

#include "base/result.h"

namespace holdfast {

struct ReceiverEvent {
  enum class Type { kConnected, kRound, kCommitted, kApplied, kDisconnected };
  Type type = Type::kConnected;
  uint64_t epoch = 0;
  uint64_t pages = 0;
  uint64_t zero_pages = 0;
  uint64_t bytes = 0;
  double millis = 0;  // receive time (kCommitted) or apply time (kApplied)
  Error error{};      // kDisconnected only
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
  };

  struct Fenced {
    uint64_t epoch = 0;
    double fence_ms = 0;
    bool partial_epoch_dropped = false;
  };

  static Result<std::unique_ptr<Receiver>> Listen(const std::string& host, uint16_t port,
                                                  EventSink sink);
  ~Receiver();  // joins its threads; keeps the replica file

  uint16_t port() const;
  double idle_ms() const;  // since the last byte on the bulk connection

  // The following block: call them from a thread that may.
  Status OpenSession(const Session& session);
  Result<Fenced> Fence();
  struct Written {
    uint64_t bytes = 0;
    double write_ms = 0;
  };
  Result<Written> WriteState(const std::string& socket_path);
  Status CloseSession();

 private:
  struct Impl;
  explicit Receiver(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace holdfast
