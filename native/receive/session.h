// One replica and one lineage of epochs.
//
//   accept thread ── Adopt(socket) ──► receive thread ── commit ──► apply thread
//                                            │                          │
//   Fence(): under the mutex that commits ───┘      waits for it ───────┘
//
// Under one mutex an epoch becomes the checkpoint, its ACK leaves, and it is
// queued for the apply thread; or the session is fenced, and none of these.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"
#include "base/thread.h"
#include "receive/receiver.h"
#include "receive/replica.h"
#include "receive/staging.h"
#include "receive/stream_reader.h"
#include "wire/digest.h"
#include "wire/frame.h"
#include "wire/frame_decoder.h"

namespace holdfast {

class ReplicaSession {
 public:
  // `sink` and `last_byte_ms` outlive the session.
  static Result<std::unique_ptr<ReplicaSession>> Open(const Receiver::Session& options,
                                                      const Receiver::EventSink& sink,
                                                      std::atomic<double>& last_byte_ms);
  ~ReplicaSession();

  // Drops the connection and what is staged, joins, keeps the file. One caller.
  void Close();

  // Why a HELLO is refused.
  struct Refusal {
    WireError code;
    std::string text;
  };
  std::optional<Refusal> Check(const HelloBody& hello) const;

  // Answers HELLO_OK and receives from the socket; only after Check.
  std::optional<Refusal> Adopt(Descriptor& socket);

  Result<Receiver::Fenced> Fence();
  Result<Receiver::Written> WriteState(const std::string& socket_path);

 private:
  // The last committed epoch, but for its pages.
  struct Checkpoint {
    uint64_t epoch = 0;
    std::vector<std::byte> prefix;
    std::vector<std::byte> device;
  };

  // Two: one epoch may arrive while the one before is applied.
  struct Slot {
    enum class State { kFree, kReceiving, kQueued };
    explicit Slot(EpochStaging reserved) : staging(std::move(reserved)) {}
    EpochStaging staging;
    State state = State::kFree;
    uint64_t epoch = 0;
  };

  // What of an epoch or a round has come so far.
  struct Incoming {
    Slot* slot = nullptr;
    std::optional<std::vector<std::byte>> prefix;
    std::vector<std::byte> device;
    Digest digest;
    double first_byte_ms = 0;
    uint64_t bytes = 0;
  };

  ReplicaSession(const Receiver::Session& options, const Receiver::EventSink& sink,
                 std::atomic<double>& last_byte_ms, Replica replica,
                 std::array<EpochStaging, 2> staging);

  void ReceiveLoop();
  Error Serve(StreamReader& reader);
  Status Handle(const FrameHeader& header, StreamReader& reader);
  Status OnBegin(const FrameHeader& header);
  Status OnPages(const FrameHeader& header, StreamReader& reader);
  Status OnZero(const FrameHeader& header, StreamReader& reader);
  Status OnState(const FrameHeader& header, StreamReader& reader);
  Status OnEndRound(StreamReader& reader);
  Status OnCommit(StreamReader& reader);
  Status Publish(const PageTotals& totals);
  void HangUp(Error error);
  void LingerForError();
  void CutConnection(WireError code, const char* text);

  Result<Slot*> ClaimSlot();
  Status MakeRoom(Slot& slot, uint64_t bytes);

  void ApplyLoop();
  void FinishApply(Slot& slot, double apply_ms);

  Status Answer(FrameType type, uint64_t epoch, std::span<const std::byte> body);
  void Emit(const ReceiverEvent& event) const { sink_(event); }

  const Receiver::Session options_;
  const Receiver::EventSink& sink_;
  std::atomic<double>& last_byte_ms_;

  // The receive thread's own.
  FrameDecoder decoder_;
  Incoming incoming_;
  std::vector<std::byte> round_table_;
  std::vector<iovec> round_parts_;

  Replica replica_;  // base rounds: receive thread; from the first epoch on: apply thread
  std::array<Slot, 2> slots_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // All below under mutex_; the atomics are also read without it.
  Descriptor socket_;
  bool connected_ = false;
  bool fenced_ = false;
  std::atomic<bool> stop_{false};  // fenced or closing: the receive thread gives up
  std::atomic<bool> closing_{false};
  bool partial_dropped_ = false;  // an epoch after the last committed one began and was dropped
  Checkpoint checkpoint_;
  std::deque<Slot*> apply_queue_;
  uint64_t largest_epoch_bytes_ = 0;
  uint64_t recent_epoch_bytes_ = 0;  // largest, slowly forgotten
  uint64_t last_apply_us_ = AckBody::kUnknown;
  std::optional<Receiver::Fenced> fence_result_;

  // Last: joined before anything they use goes.
  Thread apply_thread_;
  Thread receive_thread_;
};

// Writes `parts` to the Unix socket on which the standby listens; retries while
// it does not listen yet. kStateLoad on failure.
Result<uint64_t> WriteToStandby(const std::string& socket_path,
                                std::span<const std::span<const std::byte>> parts);

}  // namespace holdfast
