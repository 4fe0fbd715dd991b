// One replica and one lineage of epochs.
//
//   accept thread ── Adopt(socket) ──► receive thread of each stream
//                                        │ the last part of an epoch: commit
//                                        ▼
//   Fence(): under the mutex that commits ──► apply thread
//
// Under one mutex an epoch becomes the checkpoint, its ACK leaves, and it is
// queued for the apply thread; or the session is fenced, and none of these.
//
// With disks, an epoch is whole when its disk stream has come up to its boundary
// as well: whichever thread sees the last of it commits, memory and disks as one.
//
// Two mutexes, always taken in this order: receive_mutex_ lets the streams take
// turns with the decoder and the staging of what arrives; mutex_ guards the
// connection, the checkpoint, and the fence. Pages are read without either. The
// disks' own is behind both.
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
#include "disk/disk_session.h"
#include "guest/standby_clock.h"
#include "receive/receiver.h"
#include "receive/reference_disks.h"
#include "receive/replica.h"
#include "receive/staging.h"
#include "receive/standby_stream.h"
#include "receive/stream_reader.h"
#include "wire/digest.h"
#include "wire/frame.h"
#include "wire/frame_decoder.h"

namespace holdfast {

// Page bytes of two epochs in memory at once: up to the largest epoch so far,
// or this, whichever is more.
inline constexpr uint64_t kStagingFloorBytes = uint64_t{64} << 20;

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

  // Answers HELLO_OK and receives from the socket; only after Check. Stream 0
  // makes a connection, the others join it.
  std::optional<Refusal> Adopt(Descriptor& socket, const HelloBody& hello);

  std::span<const uint64_t> reference_disks() const { return reference_disks_.bytes(); }
  // HELLO_OK to a page stream, which belongs to no connection.
  void GreetPages(int fd);

  void AllowApplies(uint64_t epochs);
  Result<Receiver::Fenced> Fence();
  Result<uint64_t> Feed(StandbyStream& standby);
  Result<Receiver::Written> WriteState(StandbyStream& standby, bool follow_clock);

 private:
  // Counts those that differ from the one before; 0: none.
  struct Prefix {
    uint64_t number = 0;
    StandbyStream::Prefix bytes;
  };

  // The last committed epoch, but for its pages.
  struct Checkpoint {
    uint64_t epoch = 0;
    Prefix prefix;
    std::vector<std::byte> device;
    CommitTime commit;
  };

  // Two: one epoch may arrive while the one before is applied.
  struct Slot {
    enum class State { kFree, kReceiving, kQueued };
    explicit Slot(EpochStaging reserved) : staging(std::move(reserved)) {}
    EpochStaging staging;
    State state = State::kFree;
    uint64_t epoch = 0;
  };

  // What receiving has cost; grows over a connection.
  struct Cost {
    double cpu_ms = 0;
    double digest_ms = 0;
    uint64_t syscalls = 0;
  };

  // One of the connection's sockets. The socket is sent to under mutex_; the
  // rest is its receive thread's own.
  struct Stream {
    Stream(unsigned number, Descriptor connected, const std::atomic<bool>& cut,
           std::atomic<double>& last_byte_ms)
        : index(number), socket(std::move(connected)), reader(socket.get(), cut, last_byte_ms) {}
    const unsigned index;
    Descriptor socket;
    StreamReader reader;
    bool in_round = false;  // else in an epoch, if in anything
    Digest digest;
    uint64_t bytes = 0;  // of its part
    Cost cost_before;    // of its part
    std::vector<std::byte> table;
    std::vector<FilePart> file_parts;  // of a round's pages, in the replica's file
    std::vector<iovec> parts;          // or in its mapping
    std::vector<std::byte> references;
    PatientReader disk_reads{::pread};
    std::optional<ReferenceReader> reference_reader;  // of its part, if it had any
    Thread thread;  // last: joined first; stream 0 is received by the session's thread
  };

  // The disk stream has a receive thread like the others; what it gives up for may
  // also be another session, which takes the disks.
  struct DiskStream {
    DiskStream(Descriptor connected, std::atomic<double>& last_byte_ms)
        : socket(std::move(connected)),
          cut(std::make_shared<std::atomic<bool>>(false)),
          reader(socket.get(), *cut, last_byte_ms) {}
    Descriptor socket;
    const std::shared_ptr<std::atomic<bool>> cut;
    StreamReader reader;
    std::mutex send_mutex;  // its answers may be long, and are not sent under mutex_
    Thread thread;
  };

  // What of an epoch or a round has come so far, over all streams.
  struct Incoming {
    bool open = false;
    Slot* slot = nullptr;
    std::optional<Prefix> prefix{};
    std::vector<std::byte> device{};
    CommitTime commit{};
    double first_byte_ms = 0;
    uint64_t bytes = 0;
    Cost cost{};
    bool whole = false;  // of the streams' parts; its disks may still be behind
    WantedBody wanted{};  // not told yet
  };

  ReplicaSession(const Receiver::Session& options, const Receiver::EventSink& sink,
                 std::atomic<double>& last_byte_ms, Replica replica,
                 std::array<EpochStaging, 2> staging);

  // Receiving (session_receive.cc).
  void ReceiveLoop();
  void Serve(Stream& stream);
  Error Receive(Stream& stream);
  Status Handle(const FrameHeader& header, Stream& stream);
  Status OnBegin(Stream& stream);
  Status OnPages(const FrameHeader& header, Stream& stream);
  Status OnRoundPages(const FrameHeader& header, Stream& stream);
  Status OnZero(const FrameHeader& header, Stream& stream);
  Status OnReferences(const FrameHeader& header, Stream& stream);
  Status AskAgain();
  Status OnPrefix(const FrameHeader& header, Stream& stream);
  Status OnPrefixAhead(const FrameHeader& header, Stream& stream);
  Status OnPrefixKept(Stream& stream);
  Prefix Numbered(std::vector<std::byte> bytes);
  Status OnDevice(const FrameHeader& header, Stream& stream);
  Status OnDelta(const FrameHeader& header, Stream& stream);
  Status OnEndPart(const FrameHeader& header, Stream& stream);
  Status OnAbandon(const FrameHeader& header, Stream& stream);
  void Account(Stream& stream);
  Status PublishRound();
  Status PublishIfWhole();
  Status Publish();
  void ServeDisks(DiskStream& stream);
  bool DisksSynced();
  Result<Slot*> ClaimSlot();
  Status MakeRoom(Slot& slot, uint64_t bytes);
  static void Free(Slot& slot);
  Digest* DigestOf(Stream& stream) const {
    return verify_ && !stream.in_round ? &stream.digest : nullptr;
  }

  // The connection.
  std::optional<Refusal> Join(Descriptor& socket, const HelloBody& hello);
  std::optional<Refusal> JoinDisks(Descriptor& socket, const HelloBody& hello);
  Status AnswerOnDisks(DiskStream& stream, std::span<const std::byte> frame);
  void Lose(Error error);
  void HangUp();
  void ShutDown();
  void LingerForError();
  void CutConnection(WireError code, const char* text);
  bool SendError(WireError code, const std::string& text);
  void GreetBack(int fd) const;
  void CutAll();
  std::vector<int> Sockets() const;
  static Status Answer(int fd, FrameType type, uint64_t epoch, std::span<const std::byte> body,
                       std::span<const std::byte> table = {});

  void ApplyLoop();
  void FinishApply(Slot& slot, double apply_ms);

  void Emit(const ReceiverEvent& event) const { sink_(event); }

  const Receiver::Session options_;
  const Receiver::EventSink& sink_;
  std::atomic<double>& last_byte_ms_;

  const std::unique_ptr<DiskSession> disks_;  // none: the VM has no disks
  const ReferenceDisks reference_disks_;      // before the decoder, which knows how long they are

  std::mutex receive_mutex_;
  FrameDecoder decoder_;  // also under mutex_ alone while there is no connection
  Incoming incoming_;

  uint64_t prefixes_ = 0;  // stream 0's thread: the last number

  Replica replica_;  // base rounds: receive threads; from the first epoch on: apply thread
  std::array<Slot, 2> slots_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // All below under mutex_; the atomics are also read without it.
  std::array<std::unique_ptr<Stream>, kStreamsMax> streams_;
  std::unique_ptr<DiskStream> disk_stream_;
  bool disks_synced_ = false;  // on this connection
  unsigned streams_count_ = 0;  // that the connection is to have
  uint64_t link_ = 0;           // names the connection; counts them
  bool verify_ = true;          // agreed; does not change while there is a connection
  bool connected_ = false;
  bool ending_ = false;              // nobody joins any more
  std::optional<Error> link_error_;  // the first, which ended the connection
  bool refusal_sent_ = false;
  std::atomic<bool> cut_{false};  // the receive threads give up
  std::atomic<bool> fenced_{false};
  std::atomic<bool> closing_{false};
  bool stopped() const { return fenced_ || closing_; }
  bool partial_dropped_ = false;  // an epoch after the last committed one began and was dropped
  Checkpoint checkpoint_;
  Prefix kept_prefix_;  // that came ahead of an epoch; written by stream 0's thread
  std::deque<Slot*> apply_queue_;
  uint64_t applies_allowed_ = 0;  // of a gated session
  uint64_t largest_epoch_bytes_ = 0;
  uint64_t recent_epoch_bytes_ = 0;  // largest, slowly forgotten
  uint64_t last_apply_us_ = AckBody::kUnknown;
  std::optional<Receiver::Fenced> fence_result_;

  // Last: joined before anything they use goes.
  Thread apply_thread_;
  Thread receive_thread_;
};

}  // namespace holdfast
