#include "postcopy/link_origin.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cinttypes>
#include <utility>

#include "postcopy/silent_peer.h"
#include "wire/digest.h"
#include "wire/text.h"

namespace holdfast {
namespace {

// Read at a time: what a fault waits behind, at most.
constexpr size_t kReadBytes = 256 << 10;

void PrepareSocket(int fd) {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  const int no_delay = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &no_delay, sizeof no_delay);
  GiveUpSilentPeer(fd);
}

Error Refused(std::string message) {
  return Error::Of(ErrorCode::kProtocol, "page stream: " + std::move(message));
}

}  // namespace

Result<std::unique_ptr<LinkOrigin>> LinkOrigin::Create(std::shared_ptr<PageLinks> links,
                                                       uint64_t ram_pages, uint32_t page_size) {
  Descriptor ready(::epoll_create1(EPOLL_CLOEXEC));
  if (!ready.valid()) return Error::FromErrno("epoll_create1", "page stream");
  std::unique_ptr<LinkOrigin> origin(
      new LinkOrigin(std::move(links), std::move(ready), ram_pages, page_size));
  HF_TRY(origin->Watch(origin->links_->fd(), EPOLLIN, EPOLL_CTL_ADD));
  return origin;
}

LinkOrigin::LinkOrigin(std::shared_ptr<PageLinks> links, Descriptor ready, uint64_t ram_pages,
                       uint32_t page_size)
    : links_(std::move(links)),
      ready_(std::move(ready)),
      ram_pages_(ram_pages),
      page_size_(page_size),
      list_(ram_pages) {}

Status LinkOrigin::Watch(int fd, uint32_t events, int operation) const {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (::epoll_ctl(ready_.get(), operation, fd, &event) == 0) return {};
  return Error::FromErrno("epoll_ctl", "page stream");
}

Status LinkOrigin::Demand(uint64_t page, PageSink& sink) {
  if (!socket_.valid() || !listed_) return {};
  QueueFrame(FrameType::kPageDemand, EncodePageDemand({page}));
  const Status sent = Flush();
  if (!sent.ok()) Lose(sent.error(), sink);
  return {};
}

Status LinkOrigin::Complete(const Report& report) {
  have_ = PagesHaveBody{report.faults, static_cast<uint64_t>(report.p50_us),
                        static_cast<uint64_t>(report.p99_us),
                        static_cast<uint64_t>(report.max_us)};
  if (!socket_.valid()) return {};
  QueueFrame(FrameType::kPagesHave, EncodePagesHave(*have_));
  // A failure shows when the socket is read.
  (void)Flush();
  return {};
}

Status LinkOrigin::Take(PageSink& sink) {
  if (auto next = links_->Take(); next.socket.valid()) HF_TRY(TakeUp(std::move(next)));
  if (!socket_.valid()) return {};
  const Status taken = [&]() -> Status {
    HF_TRY(Flush());
    bool more = true;
    if (!pushing_) HF_TRY(Receive(more));
    auto handled = HandleFrame(sink);
    if (!handled.ok()) return handled.error();
    pushing_ = handled.value();
    if (!more && !pushing_) {
      return Error::Of(ErrorCode::kPeerLost, "page stream: the source closed it");
    }
    return {};
  }();
  if (taken.ok()) return {};
  const Error& error = taken.error();
  // Of the stream, and the next one may be better; all else is the VM's end.
  const bool of_stream = error.code == ErrorCode::kPeerLost ||
                         error.code == ErrorCode::kProtocol || error.code == ErrorCode::kChecksum;
  if (!of_stream) return error;
  if (error.code != ErrorCode::kPeerLost) {
    const std::string frame = EncodeErrorFrame(WireErrorOf(error.code), error.message);
    Queue(std::as_bytes(std::span(frame)));
    (void)Flush();
  }
  Lose(error, sink);
  return {};
}

// RAM may lie on other pages here than there, but a page's number must mean the same.
Status LinkOrigin::TakeUp(PageLinks::Link link) {
  if (link.page_size != page_size_) {
    return Error::Of(ErrorCode::kRamMapping,
                     Text("guest RAM lies on pages of %" PRIu32 " bytes here and of %" PRIu32
                          " at the source: it cannot follow a VM that runs already",
                          page_size_, link.page_size));
  }
  socket_ = std::move(link.socket);  // the old one's place in the epoll goes with it
  PrepareSocket(socket_.get());
  listed_ = pushing_ = awaits_room_ = false;
  list_ = PageListReader(ram_pages_);
  in_.clear();
  in_done_ = 0;
  out_.clear();
  return Watch(socket_.get(), EPOLLIN, EPOLL_CTL_ADD);
}

void LinkOrigin::Lose(const Error& why, PageSink& sink) {
  socket_.Close();
  listed_ = pushing_ = false;
  sink.Lost(why);
}

// `more`: false at the stream's end.
Status LinkOrigin::Receive(bool& more) {
  in_.erase(in_.begin(), in_.begin() + static_cast<ptrdiff_t>(in_done_));
  in_done_ = 0;
  const size_t held = in_.size();
  in_.resize(held + kReadBytes);
  const ssize_t got = ::recv(socket_.get(), in_.data() + held, kReadBytes, MSG_DONTWAIT);
  in_.resize(held + static_cast<size_t>(got > 0 ? got : 0));
  more = got != 0;
  if (got >= 0 || errno == EAGAIN || errno == EINTR) return {};
  return Error::FromErrno("recv", "page stream: the source is lost", ErrorCode::kPeerLost);
}

// At most one; true: the next is there already.
Result<bool> LinkOrigin::HandleFrame(PageSink& sink) {
  const auto whole = [this](std::span<const std::byte> bytes,
                            FrameHeader& header) -> Result<bool> {
    if (bytes.size() < kFrameHeaderBytes) return false;
    auto decoded = DecodeHeader(bytes.first<kFrameHeaderBytes>(), 0);
    if (!decoded.ok()) return decoded.error();
    header = decoded.value();
    return bytes.size() >= kFrameHeaderBytes + header.table_bytes + header.payload_bytes;
  };
  std::span<const std::byte> bytes = std::span<const std::byte>(in_).subspan(in_done_);
  FrameHeader header;
  auto there = whole(bytes, header);
  if (!there.ok() || !there.value()) return there;
  const auto body = bytes.subspan(kFrameHeaderBytes);
  HF_TRY(Handle(header, body.first(header.table_bytes),
                body.subspan(header.table_bytes, header.payload_bytes), sink));
  in_done_ += kFrameHeaderBytes + header.table_bytes + header.payload_bytes;
  return whole(std::span<const std::byte>(in_).subspan(in_done_), header);
}

Status LinkOrigin::Handle(const FrameHeader& header, std::span<const std::byte> table,
                          std::span<const std::byte> payload, PageSink& sink) {
  switch (header.type) {
    case FrameType::kError:  // whatever it is: another connection may do better
      return Error::Of(ErrorCode::kPeerLost, DecodeError(payload).message);
    case FrameType::kPageList:
      if (!listed_) return OnList(table, payload, sink);
      break;
    case FrameType::kPageData:
    case FrameType::kPageZero:
      if (listed_) return OnData(header, payload, sink);
      break;
    default: break;
  }
  return Refused(Text("%s frame is out of order here", FrameName(header.type)));
}

Status LinkOrigin::OnList(std::span<const std::byte> table, std::span<const std::byte> payload,
                          PageSink& sink) {
  const auto whole = list_.Add(table, DecodePageList(payload.first<PageListBody::kBytes>()));
  if (!whole.ok()) return whole.error();
  if (!whole.value()) return {};
  listed_ = true;
  auto lacking = sink.List(PageSet(ram_pages_, list_.Take()));
  if (!lacking.ok()) return lacking.error();
  Queue(EncodePageList(FrameType::kPageLacks, lacking.value()->Runs()));
  if (have_) QueueFrame(FrameType::kPagesHave, EncodePagesHave(*have_));
  return Flush();
}

Status LinkOrigin::OnData(const FrameHeader& header, std::span<const std::byte> payload,
                          PageSink& sink) {
  const PageDataBody data = DecodePageData(payload.first<PageDataBody::kBytes>());
  const bool inside = data.pages > 0 && data.first_page < ram_pages_ &&
                      data.pages <= ram_pages_ - data.first_page;
  if (!inside) {
    return Refused(Text("%s frame: first page %" PRIu64 ", pages %" PRIu32, FrameName(header.type),
                        data.first_page, data.pages));
  }
  if (header.type == FrameType::kPageZero) {
    return sink.Zero(data.first_page, data.pages, data.demanded);
  }
  const auto pages = payload.subspan(PageDataBody::kBytes);
  if (pages.size() != uint64_t{data.pages} * page_size_) {
    return Refused(Text("PAGE_DATA frame: %zu bytes for %" PRIu32 " pages", pages.size(),
                        data.pages));
  }
  if (HashBytes(pages) != data.digest) {
    return Error::Of(ErrorCode::kChecksum,
                     Text("page stream: pages %" PRIu64 " to %" PRIu64 " arrived damaged",
                          data.first_page, data.first_page + data.pages - 1));
  }
  return sink.Install(data.first_page, pages, data.demanded);
}

void LinkOrigin::Queue(std::span<const std::byte> bytes) {
  out_.insert(out_.end(), bytes.begin(), bytes.end());
}

void LinkOrigin::QueueFrame(FrameType type, std::span<const std::byte> payload) {
  const HeaderBytes head = EncodeHeader({.type = type, .payload_bytes = payload.size()});
  Queue(head);
  Queue(payload);
}

// What does not fit is sent when there is room: few small frames, and one list.
Status LinkOrigin::Flush() {
  size_t done = 0;
  while (done < out_.size()) {
    const ssize_t sent = ::send(socket_.get(), out_.data() + done, out_.size() - done,
                                MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) break;
    if (sent < 0) {
      return Error::FromErrno("send", "page stream: the source is lost", ErrorCode::kPeerLost);
    }
    done += static_cast<size_t>(sent);
  }
  out_.erase(out_.begin(), out_.begin() + static_cast<ptrdiff_t>(done));
  if (awaits_room_ == !out_.empty()) return {};
  awaits_room_ = !out_.empty();
  return Watch(socket_.get(), awaits_room_ ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
}

}  // namespace holdfast
