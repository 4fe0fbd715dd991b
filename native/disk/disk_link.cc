#include "disk/disk_link.h"

#include <sys/sendfile.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <utility>

#include "base/clock.h"
#include "wire/text.h"

namespace holdfast {
namespace {

constexpr size_t kHeardBytesMax = 4096;
static_assert(kHeardBytesMax > kFrameHeaderBytes + kErrorBytesMax);

iovec Part(std::span<const std::byte> bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

void Append(std::vector<std::byte>& to, std::span<const std::byte> bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}

}  // namespace

DiskLink::DiskLink(Descriptor connected, const CancelSignal& cancel)
    : socket_(std::move(connected), cancel) {
  // From the start, so that it holds when the process is killed: what the kernel
  // has by reference is not to leave once its place in the ring is used again.
  socket_.AbortOnClose();
  socket_.TwoWay();
}

Result<std::unique_ptr<DiskLink>> DiskLink::Connect(const Peer& peer, const CancelSignal& cancel) {
  const double started_ms = MonotonicMs();
  auto socket = StreamSocket::Dial(peer.host, peer.port, peer.timeout_ms, cancel);
  if (!socket.ok()) return socket.error();
  Peer rest = peer;
  rest.timeout_ms =
      std::max(1, peer.timeout_ms - static_cast<int>(MonotonicMs() - started_ms));
  return Adopt(std::move(socket).value(), rest, cancel);
}

Result<std::unique_ptr<DiskLink>> DiskLink::Adopt(Descriptor connected, const Peer& peer,
                                                  const CancelSignal& cancel) {
  std::unique_ptr<DiskLink> link(new DiskLink(std::move(connected), cancel));
  HF_TRY(link->Handshake(peer));
  return link;
}

Status DiskLink::Handshake(const Peer& peer) {
  HelloBody hello;
  hello.page_size = peer.page_size;
  hello.ram_bytes = peer.ram_bytes;
  hello.token = peer.token;
  hello.link = peer.link;
  hello.streams = peer.streams;
  hello.flags = HelloBody::kFlagDisks;
  HF_TRY(Send(FrameType::kHello, 0, EncodeHello(hello)));
  auto frame = Await(peer.timeout_ms);
  if (!frame.ok()) {
    Error error = frame.error();
    if (error.sys_errno == ETIMEDOUT) error.code = ErrorCode::kConnect;
    return error;
  }
  if (frame.value().header.type != FrameType::kHelloOk) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("%s frame instead of HELLO_OK", FrameName(frame.value().header.type)));
  }
  const HelloOkBody ok =
      DecodeHelloOk(std::span(frame.value().payload).first<HelloOkBody::kBytes>());
  if (ok.version != kWireVersion || ok.link != peer.link) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("HELLO_OK frame: version %" PRIu32 ", link %" PRIu64
                          ", not version %" PRIu32 ", link %" PRIu64,
                          ok.version, ok.link, kWireVersion, peer.link));
  }
  return {};
}

Result<DiskLink::Frame> DiskLink::Await(int timeout_ms) {
  HeaderBytes head;
  HF_TRY(socket_.ReceiveAll(head, timeout_ms));
  auto header = DecodeHeader(head, 0);
  if (!header.ok()) return header.error();
  Frame frame{header.value(), {}, {}};
  frame.table.resize(frame.header.table_bytes);
  frame.payload.resize(frame.header.payload_bytes);
  HF_TRY(socket_.ReceiveAll(frame.table, timeout_ms));
  HF_TRY(socket_.ReceiveAll(frame.payload, timeout_ms));
  if (frame.header.type == FrameType::kError) return DecodeError(frame.payload);
  return frame;
}

// Takes a frame off the front, if all of it is there.
Status DiskLink::TakeFrame(std::span<const std::byte>& bytes, bool& whole) {
  whole = false;
  if (bytes.size() < kFrameHeaderBytes) return {};
  auto header = DecodeHeader(bytes.first<kFrameHeaderBytes>(), 0);
  if (!header.ok()) return header.error();
  const FrameType type = header.value().type;
  const bool expected = type == FrameType::kDiskReady || type == FrameType::kDiskReceived ||
                        type == FrameType::kError;
  if (!expected) {
    return Error::Of(ErrorCode::kProtocol,
                     Text("%s frame: out of order on the disk stream", FrameName(type)));
  }
  const uint64_t frame_bytes = kFrameHeaderBytes + header.value().payload_bytes;
  if (bytes.size() < frame_bytes) return {};
  const auto payload = bytes.subspan(kFrameHeaderBytes, header.value().payload_bytes);
  bytes = bytes.subspan(frame_bytes);
  if (type == FrameType::kError) return DecodeError(payload);
  frames_.push_back({header.value(), {}, {payload.begin(), payload.end()}});
  whole = true;
  return {};
}

Result<std::span<const DiskLink::Frame>> DiskLink::Listen(int timeout_ms) {
  frames_.clear();
  HF_TRY(socket_.AwaitReadable(socket_.fd(), timeout_ms));
  const size_t kept = heard_.size();
  heard_.resize(kHeardBytesMax);
  const ssize_t got =
      ::recv(socket_.fd(), heard_.data() + kept, heard_.size() - kept, MSG_DONTWAIT);
  const int failure = errno;
  heard_.resize(kept + static_cast<size_t>(std::max<ssize_t>(got, 0)));
  if (got == 0) return Error::Of(ErrorCode::kPeerLost, "disk stream: peer closed it");
  if (got < 0 && failure != EAGAIN && failure != EINTR) {
    errno = failure;
    return socket_.LostBy("recv");
  }
  std::span<const std::byte> rest(heard_);
  for (bool whole = true; whole;) HF_TRY(TakeFrame(rest, whole));
  heard_.erase(heard_.begin(), heard_.end() - static_cast<ptrdiff_t>(rest.size()));
  return std::span<const Frame>(frames_);
}

Status DiskLink::Send(FrameType type, uint64_t epoch, std::span<const std::byte> payload) {
  const HeaderBytes head =
      EncodeHeader({.type = type, .epoch = epoch, .payload_bytes = payload.size()});
  iovec parts[2] = {Part(head), Part(payload)};
  return socket_.SendAll(std::span(parts).first(payload.empty() ? 1 : 2), false);
}

Status DiskLink::SendBase(uint32_t disk, std::span<const BaseCopy::Piece> pieces) {
  constexpr size_t kHeadBytes = kFrameHeaderBytes + DiskBaseBody::kBytes;
  head_.clear();
  head_.reserve(pieces.size() * kHeadBytes);  // parts_ point into it
  parts_.clear();
  for (const BaseCopy::Piece& piece : pieces) {
    const size_t at = head_.size();
    Append(head_, EncodeHeader({.type = FrameType::kDiskBase,
                                .payload_bytes = DiskBaseBody::kBytes + piece.data.size()}));
    Append(head_, EncodeDiskBase({disk, piece.kind, piece.offset, piece.length}));
    parts_.push_back(Part(std::span(head_).subspan(at)));
    if (!piece.data.empty()) parts_.push_back(Part(piece.data));
  }
  return socket_.SendAll(parts_, false);
}

Result<uint64_t> DiskLink::SendLog(uint32_t disk, const LogReader& log, LogReader::Part part) {
  head_.clear();
  Append(head_, EncodeHeader({.type = FrameType::kDiskLog,
                              .payload_bytes = DiskLogBody::kBytes + part.bytes}));
  Append(head_, EncodeDiskLog({disk, part.lsn}));
  iovec head = Part(head_);
  HF_TRY(socket_.SendAll({&head, 1}, true));
  return SendFromRing(log.ring(), part);
}

Result<uint64_t> DiskLink::SendFromRing(const Ring& ring, LogReader::Part part) {
  while (part.bytes > 0 && by_reference_) {
    HF_TRY(socket_.CheckCancelled());
    const uint64_t to_end = ring.ring_bytes() - part.lsn % ring.ring_bytes();
    auto offset = static_cast<off_t>(ring.FileOffset(part.lsn));
    const ssize_t sent =
        ::sendfile(socket_.fd(), ring.fd(), &offset, std::min(part.bytes, to_end));
    if (sent > 0) {
      part = {part.lsn + static_cast<uint64_t>(sent), part.bytes - static_cast<uint64_t>(sent)};
      continue;
    }
    if (sent == 0) {
      return Error{ErrorCode::kSyscall, 0, "sendfile", "a disk's log is shorter than its header says"};
    }
    if (errno == EINTR) continue;
    if (errno == EAGAIN) {
      HF_TRY(socket_.WaitWritable());
    } else if (errno == EINVAL || errno == ENOSYS) {
      by_reference_ = false;
    } else {
      return socket_.LostBy("sendfile");
    }
  }
  if (part.bytes == 0) return uint64_t{0};
  iovec bytes{ring.At(part.lsn), part.bytes};
  HF_TRY(socket_.SendAll({&bytes, 1}, false));
  return part.bytes;
}

void DiskLink::Interrupt() { ::shutdown(socket_.fd(), SHUT_RDWR); }

}  // namespace holdfast
