#include "postcopy/page_server.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <utility>

#include "postcopy/silent_peer.h"
#include "send/zero_page.h"
#include "wire/digest.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// Of one frame in the background: on a 1 Gbit/s link a demanded page waits a
// millisecond for it.
constexpr uint64_t kPortionBytes = 128 << 10;
// What the kernel holds unsent: a demanded page stands behind it in the queue.
constexpr uint64_t kUnsentBytesMax = 128 << 10;
constexpr size_t kReadBytes = 64 << 10;

iovec Part(std::span<const std::byte> bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

Error Refused(std::string message) {
  return Error::Of(ErrorCode::kProtocol, "page stream: " + std::move(message));
}

}  // namespace

PageServer::PageServer(const PageSource& source, uint32_t page_size, std::vector<PageRun> pages,
                       std::vector<PageRun> hot, ServeProgress& progress)
    : source_(source),
      page_size_(page_size),
      ram_pages_(source.size / page_size),
      pages_(std::move(pages)),
      hot_(std::move(hot)),
      progress_(progress) {
  uint64_t count = 0;
  for (const PageRun& run : pages_) count += run.pages;
  progress_.pages = progress_.pages_left = count;
}

Result<PagesHaveBody> PageServer::Serve(Descriptor connected, HelloBody hello, int timeout_ms,
                                        const CancelSignal& cancel) {
  StreamSocket socket(std::move(connected), cancel);
  GiveUpSilentPeer(socket.fd());
  socket.LimitUnsent(kUnsentBytesMax);
  socket.TwoWay();
  hello.flags = HelloBody::kFlagPages;
  hello.link = 0;
  hello.stream = 0;
  hello.streams = 1;
  HF_TRY(Handshake(socket, hello, timeout_ms));
  sender_ = MakeSendfileSender();
  by_copy_ = false;
  in_.clear();
  lacks_.emplace(ram_pages_);
  order_.reset();
  have_.reset();
  const std::vector<std::byte> list = EncodePageList(FrameType::kPageList, pages_);
  iovec part = Part(list);
  HF_TRY(socket.SendAll({&part, 1}, false));
  for (;;) {
    bool readable = false;
    bool writable = false;
    const bool sending = order_ && !order_->pending().empty();
    HF_TRY(Wait(socket, cancel, sending, readable, writable));
    // Heard first: what is demanded goes before the background's next portion.
    if (readable) HF_TRY(Hear(socket));
    if (have_) return *have_;
    if (sending && writable) HF_TRY(SendPortion(socket));
  }
}

Status PageServer::Handshake(StreamSocket& socket, const HelloBody& hello, int timeout_ms) {
  const HeaderBytes head =
      EncodeHeader({.type = FrameType::kHello, .payload_bytes = HelloBody::kBytes});
  const auto body = EncodeHello(hello);
  std::array<iovec, 2> parts{Part(head), Part(body)};
  HF_TRY(socket.SendAll(parts, false));
  HeaderBytes answer;
  HF_TRY(socket.ReceiveAll(answer, timeout_ms));
  auto header = DecodeHeader(answer, 0);
  if (!header.ok()) return header.error();
  std::vector<std::byte> payload(header.value().payload_bytes);
  HF_TRY(socket.ReceiveAll(payload, timeout_ms));
  if (header.value().type == FrameType::kError) return DecodeError(payload);
  if (header.value().type != FrameType::kHelloOk) {
    return Refused(Text("%s frame instead of HELLO_OK", FrameName(header.value().type)));
  }
  const HelloOkBody ok = DecodeHelloOk(std::span(payload).first<HelloOkBody::kBytes>());
  if (ok.version == kWireVersion) return {};
  return Refused(Text("HELLO_OK frame: version %" PRIu32 ", not %" PRIu32, ok.version,
                      kWireVersion));
}

Status PageServer::Wait(const StreamSocket& socket, const CancelSignal& cancel, bool sending,
                        bool& readable, bool& writable) const {
  std::array<pollfd, 2> fds{
      {{cancel.fd(), POLLIN, 0},
       {socket.fd(), static_cast<short>(sending ? POLLIN | POLLOUT : POLLIN), 0}}};
  const int ready = ::poll(fds.data(), fds.size(), -1);
  HF_TRY(socket.CheckCancelled());
  if (ready < 0 && errno != EINTR) return Error::FromErrno("poll", "page stream");
  if (ready <= 0) return {};
  readable = (fds[1].revents & ~POLLOUT) != 0;
  writable = (fds[1].revents & POLLOUT) != 0;
  return {};
}

Status PageServer::Hear(StreamSocket& socket) {
  const size_t held = in_.size();
  in_.resize(held + kReadBytes);
  const ssize_t got = ::recv(socket.fd(), in_.data() + held, kReadBytes, MSG_DONTWAIT);
  in_.resize(held + static_cast<size_t>(got > 0 ? got : 0));
  if (got == 0) return Error::Of(ErrorCode::kPeerLost, "page stream: the destination closed it");
  if (got < 0 && errno != EAGAIN && errno != EINTR) {
    return Error::FromErrno("recv", "page stream: the destination is lost", ErrorCode::kPeerLost);
  }
  std::span<const std::byte> rest = in_;
  while (rest.size() >= kFrameHeaderBytes) {
    auto header = DecodeHeader(rest.first<kFrameHeaderBytes>(), 0);
    if (!header.ok()) return header.error();
    const size_t table_bytes = header.value().table_bytes;
    const size_t body_bytes = table_bytes + header.value().payload_bytes;
    if (rest.size() < kFrameHeaderBytes + body_bytes) break;
    const auto body = rest.subspan(kFrameHeaderBytes, body_bytes);
    HF_TRY(Handle(header.value(), body.first(table_bytes), body.subspan(table_bytes)));
    rest = rest.subspan(kFrameHeaderBytes + body_bytes);
  }
  in_.erase(in_.begin(), in_.end() - static_cast<ptrdiff_t>(rest.size()));
  return {};
}

Status PageServer::Handle(const FrameHeader& header, std::span<const std::byte> table,
                          std::span<const std::byte> payload) {
  switch (header.type) {
    case FrameType::kError: return DecodeError(payload);
    case FrameType::kPageLacks: {
      if (order_) break;
      const auto whole = lacks_->Add(table, DecodePageList(payload.first<PageListBody::kBytes>()));
      if (!whole.ok()) return whole.error();
      if (!whole.value()) return {};
      PageSet pending(ram_pages_, lacks_->Take());
      progress_.pages_left = pending.size();
      progress_.connections++;
      order_.emplace(std::move(pending), hot_);
      return {};
    }
    case FrameType::kPageDemand: {
      const uint64_t page = DecodePageDemand(payload.first<PageDemandBody::kBytes>()).page;
      if (!order_ || page >= ram_pages_) break;
      order_->Demand(page);
      return {};
    }
    case FrameType::kPagesHave:
      have_ = DecodePagesHave(payload.first<PagesHaveBody::kBytes>());
      return {};
    default: break;
  }
  return Refused(Text("%s frame is out of order here", FrameName(header.type)));
}

Status PageServer::SendPortion(StreamSocket& socket) {
  const auto pages_max = static_cast<uint32_t>(std::max<uint64_t>(1, kPortionBytes / page_size_));
  const auto [portion, demanded] = order_->Next(pages_max);
  // Zero pages are told apart from those with content, in runs of either.
  for (PageRun rest = portion; rest.pages > 0;) {
    const bool zero = IsZeroPage(At(rest.first_page), page_size_);
    uint32_t pages = 1;
    while (pages < rest.pages && IsZeroPage(At(rest.first_page + pages), page_size_) == zero) {
      pages++;
    }
    const PageRun run{rest.first_page, rest.first_page, pages};
    HF_TRY(zero ? SendZeros(socket, run, demanded) : SendData(socket, run, demanded));
    rest = {rest.first_page + pages, rest.first_page + pages, rest.pages - pages};
  }
  (demanded ? progress_.demanded_pages : progress_.background_pages) += portion.pages;
  progress_.pages_left = order_->pending().size();
  return {};
}

Status PageServer::SendZeros(StreamSocket& socket, const PageRun& run, bool demanded) {
  const HeaderBytes head =
      EncodeHeader({.type = FrameType::kPageZero, .payload_bytes = PageDataBody::kBytes});
  const auto body = EncodePageData({run.first_page, run.pages, demanded, 0});
  std::array<iovec, 2> parts{Part(head), Part(body)};
  HF_TRY(socket.SendAll(parts, false));
  progress_.zero_pages += run.pages;
  progress_.bytes += head.size() + body.size();
  return {};
}

Status PageServer::SendData(StreamSocket& socket, const PageRun& run, bool demanded) {
  const uint64_t bytes = uint64_t{run.pages} * page_size_;
  const HeaderBytes head = EncodeHeader(
      {.type = FrameType::kPageData, .payload_bytes = PageDataBody::kBytes + bytes});
  const uint64_t digest = HashBytes({At(run.first_page), bytes});
  const auto body = EncodePageData({run.first_page, run.pages, demanded, digest});
  std::array<iovec, 2> parts{Part(head), Part(body)};
  HF_TRY(socket.SendAll(parts, true));
  HF_TRY(SendPages(socket, run));
  progress_.bytes += head.size() + body.size() + bytes;
  return {};
}

Status PageServer::SendPages(StreamSocket& socket, const PageRun& run) {
  const Extent extent{run.first_page * page_size_, uint64_t{run.pages} * page_size_};
  const Status sent = sender_->Send(source_, {&extent, 1}, socket);
  // A file on hugetlbfs has no other way than by copy.
  if (sent.ok() || by_copy_ || sent.error().code != ErrorCode::kUnsupported) return sent;
  by_copy_ = true;
  sender_ = MakeCopySender();
  return sender_->Send(source_, {&extent, 1}, socket);
}

}  // namespace holdfast
