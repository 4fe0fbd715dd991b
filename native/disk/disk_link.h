// The primary's end of the disk stream (docs/wire-protocol.md): a connection of
// its own to the backup's bulk port, in both directions at once.
//
// One thread sends, one listens; before there are two, one does both.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/result.h"
#include "disk/base_copy.h"
#include "disk/log_reader.h"
#include "send/stream_socket.h"
#include "wire/disk_frame.h"
#include "wire/frame.h"

namespace holdfast {

class DiskLink {
 public:
  struct Peer {
    std::string host;
    uint16_t port = 0;
    std::array<std::byte, 32> token{};
    uint32_t page_size = 0;
    uint64_t ram_bytes = 0;
    uint64_t link = 0;  // of the connection it belongs to
    uint16_t streams = 1;
    int timeout_ms = 0;
  };

  // Makes the connection, shows the token and waits for HELLO_OK. `cancel` must
  // outlive it.
  static Result<std::unique_ptr<DiskLink>> Connect(const Peer& peer, const CancelSignal& cancel);
  // The same over a connected stream socket.
  static Result<std::unique_ptr<DiskLink>> Adopt(Descriptor connected, const Peer& peer,
                                                 const CancelSignal& cancel);
  DiskLink(const DiskLink&) = delete;
  DiskLink& operator=(const DiskLink&) = delete;

  struct Frame {
    FrameHeader header;
    std::vector<std::byte> table;
    std::vector<std::byte> payload;
  };
  // The next frame, while nobody else listens. An ERROR frame is an error.
  Result<Frame> Await(int timeout_ms);

  // Frames that came within the time, perhaps none: DISK_READY and DISK_RECEIVED.
  // An ERROR frame is an error. The listening thread.
  Result<std::span<const Frame>> Listen(int timeout_ms);

  // The sending thread.
  Status Send(FrameType type, uint64_t epoch, std::span<const std::byte> payload);
  Status SendBase(uint32_t disk, std::span<const BaseCopy::Piece> pieces);
  // By reference, straight from the ring; copied if the kernel won't. Returns how
  // much was copied.
  Result<uint64_t> SendLog(uint32_t disk, const LogReader& log, LogReader::Part part);

  // Any thread: makes all others fail at once.
  void Interrupt();

 private:
  DiskLink(Descriptor connected, const CancelSignal& cancel);

  Status Handshake(const Peer& peer);
  Result<uint64_t> SendFromRing(const Ring& ring, LogReader::Part part);
  Status TakeFrame(std::span<const std::byte>& bytes, bool& whole);

  StreamSocket socket_;
  std::vector<std::byte> head_;  // of the frames that leave together
  std::vector<iovec> parts_;
  bool by_reference_ = true;

  // The listening thread's.
  std::vector<std::byte> heard_;
  std::vector<Frame> frames_;
};

}  // namespace holdfast
