// The listening socket, and who may pass: one thread, a bounded number of
// strangers, each with a short time to show the session's token.

#include "receive/receiver.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "base/cancel.h"
#include "base/clock.h"
#include "base/descriptor.h"
#include "base/thread.h"
#include "postcopy/page_links.h"
#include "receive/session.h"
#include "receive/standby_stream.h"
#include "wire/frame.h"
#include "wire/text.h"

namespace holdfast {
namespace {

constexpr ptrdiff_t kStrangersMax = 4;
constexpr double kHelloMsMax = 2'000;
// A refused stranger may still read why.
constexpr double kRefusedMsMax = 500;
// Out of descriptors: accept would fail at once, again and again.
constexpr double kAcceptPauseMs = 100;
constexpr int kBacklog = 16;

Error NoSession(const char* what) {
  return Error::Of(ErrorCode::kStateLoad, std::string(what) + ": no session is open");
}

// A connection that has not shown its token, or has been refused.
struct Stranger {
  Descriptor socket;
  bool invited = false;  // by Adopt: takes nobody's place, and nobody takes its
  std::array<std::byte, kFrameHeaderBytes + HelloBody::kBytes> hello;
  size_t received = 0;
  bool refused = false;
  double deadline_ms = 0;
};

Result<Descriptor> ListenOn(const addrinfo& address, const std::string& where) {
  Descriptor socket(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                             IPPROTO_TCP));
  if (!socket.valid()) return Error::FromErrno("socket", "listening on " + where);
  const int on = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(socket.get(), address.ai_addr, address.ai_addrlen) != 0) {
    return Error::FromErrno("bind", "listening on " + where);
  }
  if (::listen(socket.get(), kBacklog) != 0) {
    return Error::FromErrno("listen", "listening on " + where);
  }
  return socket;
}

Result<Descriptor> ListenSocket(const std::string& host, uint16_t port) {
  const std::string where = host + " port " + std::to_string(port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int failure = ::getaddrinfo(host.empty() ? nullptr : host.c_str(),
                                    std::to_string(port).c_str(), &hints, &found);
  if (failure != 0) {
    return Error{ErrorCode::kSyscall, 0, "getaddrinfo",
                 "listening on " + where + ": " + ::gai_strerror(failure)};
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, ::freeaddrinfo);
  Error last = Error::Of(ErrorCode::kSyscall, "listening on " + where + ": no address");
  for (const addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) {
    auto socket = ListenOn(*at, where);
    if (socket.ok()) return socket;
    last = socket.error();
  }
  return last;
}

uint16_t PortOf(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  // The port is at the same place in both families.
  return ntohs(reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
}

}  // namespace

struct Receiver::Impl {
  Impl(Descriptor socket, EventSink events)
      : listener(std::move(socket)),
        port(listener.valid() ? PortOf(listener.get()) : uint16_t{0}),
        sink(std::move(events)) {}

  void AcceptLoop();
  void AcceptOne();
  void AcceptInvited();
  // False: the stranger is done with, one way or the other.
  bool Attend(Stranger& stranger);
  bool Refuse(Stranger& stranger, WireError code, const std::string& text);
  // Strangers come and go unseen, but whoever handed one in waits for it.
  void TellInvited(const Stranger& stranger, Error why) {
    if (!stranger.invited) return;
    sink({.type = ReceiverEvent::Type::kDisconnected, .error = std::move(why)});
  }
  bool Introduce(Stranger& stranger);
  std::shared_ptr<ReplicaSession> Current() {
    const std::lock_guard lock(mutex);
    return session;
  }

  const Descriptor listener;  // none: poll passes over it
  const uint16_t port;
  const EventSink sink;
  CancelSignal cancel;
  const Descriptor invitation{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  const std::shared_ptr<PageLinks> page_links = std::make_shared<PageLinks>();
  // NaN: no byte yet.
  std::atomic<double> last_byte_ms{std::numeric_limits<double>::quiet_NaN()};

  std::vector<Stranger> strangers;  // the accept thread's own
  double accept_after_ms = 0;       // likewise

  std::mutex mutex;
  std::vector<Descriptor> invited;
  bool opening = false;
  std::shared_ptr<ReplicaSession> session;

  Thread accept_thread;  // last: joined before what it uses goes
};

void Receiver::Impl::AcceptLoop() {
  std::vector<pollfd> fds;
  while (!cancel.cancelled()) {
    const double now = MonotonicMs();
    std::erase_if(strangers, [now](const Stranger& s) { return now >= s.deadline_ms; });
    const bool paused = now < accept_after_ms;
    double wait_ms = paused ? accept_after_ms - now : std::numeric_limits<double>::infinity();
    fds = {{cancel.fd(), POLLIN, 0},
           {listener.get(), static_cast<short>(paused ? 0 : POLLIN), 0},
           {invitation.get(), POLLIN, 0}};
    for (const Stranger& stranger : strangers) {
      fds.push_back({stranger.socket.get(), POLLIN, 0});
      wait_ms = std::min(wait_ms, stranger.deadline_ms - now);
    }
    const int timeout_ms = std::isinf(wait_ms) ? -1 : static_cast<int>(std::ceil(wait_ms));
    if (::poll(fds.data(), fds.size(), timeout_ms) <= 0) continue;
    size_t index = 3;
    std::erase_if(strangers, [&](Stranger& stranger) {
      return fds[index++].revents != 0 && !Attend(stranger);
    });
    if (fds[1].revents != 0) AcceptOne();
    if (fds[2].revents != 0) AcceptInvited();
  }
  strangers.clear();
}

void Receiver::Impl::AcceptInvited() {
  uint64_t count;
  [[maybe_unused]] const ssize_t got = ::read(invitation.get(), &count, sizeof count);
  const std::lock_guard lock(mutex);
  for (Descriptor& socket : invited) {
    Stranger& stranger = strangers.emplace_back();
    stranger.socket = std::move(socket);
    stranger.invited = true;
    stranger.deadline_ms = std::numeric_limits<double>::infinity();
  }
  invited.clear();
}

void Receiver::Impl::AcceptOne() {
  Descriptor socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) {
    const bool transient = errno == EAGAIN || errno == EINTR || errno == ECONNABORTED;
    if (!transient) accept_after_ms = MonotonicMs() + kAcceptPauseMs;
    return;
  }
  // The newest gets the place: a primary shows its token at once, and those
  // who just sit there would keep it out.
  const auto uninvited = [](const Stranger& s) { return !s.invited; };
  if (std::count_if(strangers.begin(), strangers.end(), uninvited) == kStrangersMax) {
    strangers.erase(std::find_if(strangers.begin(), strangers.end(), uninvited));
  }
  Stranger& stranger = strangers.emplace_back();
  stranger.socket = std::move(socket);
  stranger.deadline_ms = MonotonicMs() + kHelloMsMax;
}

bool Receiver::Impl::Attend(Stranger& stranger) {
  if (stranger.refused) {
    // Thrown away, so that closing does not reset the connection before the
    // ERROR frame was read.
    std::array<std::byte, 4096> waste;
    const ssize_t received =
        ::recv(stranger.socket.get(), waste.data(), waste.size(), MSG_DONTWAIT);
    return received > 0 || (received < 0 && errno == EAGAIN);
  }
  const auto room = std::span(stranger.hello).subspan(stranger.received);
  const ssize_t received =
      ::recv(stranger.socket.get(), room.data(), room.size(), MSG_DONTWAIT);
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (received <= 0) {
    TellInvited(stranger, Error::Of(ErrorCode::kPeerLost, "bulk connection: peer closed it"));
    return false;
  }
  stranger.received += static_cast<size_t>(received);
  if (stranger.received < kFrameHeaderBytes) return true;
  const auto head = std::span(stranger.hello).first<kFrameHeaderBytes>();
  auto header = DecodeHeader(head, 0);
  if (!header.ok()) return Refuse(stranger, WireError::kProtocol, header.error().message);
  if (header.value().type != FrameType::kHello || header.value().epoch != 0) {
    return Refuse(stranger, WireError::kProtocol,
                  Text("%s frame, epoch %" PRIu64 ": HELLO with epoch 0 comes first",
                       FrameName(header.value().type), header.value().epoch));
  }
  // Another version's HELLO has another length: it is to learn that first.
  constexpr size_t kVersionEnd = kFrameHeaderBytes + sizeof(uint32_t);
  if (stranger.received < kVersionEnd) return true;
  const uint32_t version =
      DecodeHelloVersion(std::span(stranger.hello).subspan<kFrameHeaderBytes, sizeof(uint32_t)>());
  if (version != kWireVersion) {
    return Refuse(stranger, WireError::kVersion,
                  Text("HELLO frame: version %" PRIu32 ", this side speaks %" PRIu32, version,
                       kWireVersion));
  }
  if (header.value().payload_bytes != HelloBody::kBytes) {
    return Refuse(stranger, WireError::kProtocol,
                  Text("HELLO frame: payloadBytes %" PRIu64 ", not %zu",
                       header.value().payload_bytes, HelloBody::kBytes));
  }
  return stranger.received < stranger.hello.size() || Introduce(stranger);
}

bool Receiver::Impl::Refuse(Stranger& stranger, WireError code, const std::string& text) {
  const std::string frame = EncodeErrorFrame(code, text);
  TellInvited(stranger,
              DecodeError(std::as_bytes(std::span(frame)).subspan(kFrameHeaderBytes)));
  const ssize_t sent = ::send(stranger.socket.get(), frame.data(), frame.size(),
                              MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent != static_cast<ssize_t>(frame.size())) return false;
  ::shutdown(stranger.socket.get(), SHUT_WR);
  stranger.refused = true;
  stranger.deadline_ms = MonotonicMs() + kRefusedMsMax;
  return true;
}

bool Receiver::Impl::Introduce(Stranger& stranger) {
  const HelloBody hello =
      DecodeHello(std::span(stranger.hello).subspan<kFrameHeaderBytes, HelloBody::kBytes>());
  const auto current = Current();
  // The same words as for a wrong token: a stranger learns nothing.
  if (current == nullptr) return Refuse(stranger, WireError::kAuth, "token refused");
  auto refusal = current->Check(hello);
  if (!refusal) {
    const int flags = ::fcntl(stranger.socket.get(), F_GETFL);
    ::fcntl(stranger.socket.get(), F_SETFL, flags & ~O_NONBLOCK);
    if (hello.of_pages()) {
      current->GreetPages(stranger.socket.get());
      page_links->Offer({std::move(stranger.socket), hello.page_size});
      return false;
    }
    refusal = current->Adopt(stranger.socket, hello);
  }
  return refusal ? Refuse(stranger, refusal->code, refusal->text) : false;
}

Receiver::Receiver(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Receiver::~Receiver() {
  impl_->cancel.Cancel();
  impl_->accept_thread.Join();
}

Result<std::unique_ptr<Receiver>> Receiver::Listen(const std::string& host, uint16_t port,
                                                   EventSink sink) {
  auto socket = ListenSocket(host, port);
  if (!socket.ok()) return socket.error();
  return Start(std::move(socket).value(), std::move(sink));
}

Result<std::unique_ptr<Receiver>> Receiver::Create(EventSink sink) {
  return Start({}, std::move(sink));
}

Result<std::unique_ptr<Receiver>> Receiver::Start(Descriptor listener, EventSink sink) {
  auto impl = std::make_unique<Impl>(std::move(listener), std::move(sink));
  if (!impl->invitation.valid()) return Error::FromErrno("eventfd", "receiver");
  Impl* self = impl.get();
  impl->accept_thread = Thread("hf-accept", [self] { self->AcceptLoop(); });
  return std::unique_ptr<Receiver>(new Receiver(std::move(impl)));
}

void Receiver::Adopt(Descriptor socket) {
  const int flags = ::fcntl(socket.get(), F_GETFL);
  ::fcntl(socket.get(), F_SETFL, flags | O_NONBLOCK);
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->invited.push_back(std::move(socket));
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(impl_->invitation.get(), &one, sizeof one);
}

std::shared_ptr<PageLinks> Receiver::page_links() const { return impl_->page_links; }

uint16_t Receiver::port() const { return impl_->port; }

double Receiver::idle_ms() const {
  const double last = impl_->last_byte_ms.load(std::memory_order_relaxed);
  return std::isnan(last) ? std::numeric_limits<double>::infinity() : MonotonicMs() - last;
}

Status Receiver::OpenSession(const Session& options) {
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->session != nullptr || impl_->opening) {
      return Error::Of(ErrorCode::kLimit, "session: one is open already");
    }
    impl_->opening = true;
  }
  impl_->last_byte_ms = std::numeric_limits<double>::quiet_NaN();
  // Takes long for large RAM, and strangers are attended to meanwhile.
  auto session = ReplicaSession::Open(options, impl_->sink, impl_->last_byte_ms);
  const std::lock_guard lock(impl_->mutex);
  impl_->opening = false;
  if (!session.ok()) return session.error();
  impl_->session = std::move(session).value();
  return {};
}

std::vector<bool> Receiver::reference_disks() const {
  const auto session = impl_->Current();
  std::vector<bool> has;
  if (session == nullptr) return has;
  for (const uint64_t bytes : session->reference_disks()) has.push_back(bytes > 0);
  return has;
}

Result<Receiver::Fenced> Receiver::Fence() {
  const auto session = impl_->Current();
  if (session == nullptr) return NoSession("fence");
  return session->Fence();
}

Result<uint64_t> Receiver::Feed(StandbyStream& standby) {
  const auto session = impl_->Current();
  if (session == nullptr) return NoSession("prefix");
  return session->Feed(standby);
}

Result<Receiver::Written> Receiver::WriteState(StandbyStream& standby, bool follow_clock) {
  const auto session = impl_->Current();
  if (session == nullptr) return NoSession("device state");
  return session->WriteState(standby, follow_clock);
}

Result<Receiver::Written> Receiver::WriteState(const std::string& socket_path,
                                               bool follow_clock) {
  StandbyStream standby(socket_path);
  return WriteState(standby, follow_clock);
}

void Receiver::AllowApplies(uint64_t epochs) {
  const auto session = impl_->Current();
  if (session != nullptr) session->AllowApplies(epochs);
}

Status Receiver::CloseSession() {
  std::shared_ptr<ReplicaSession> session;
  {
    const std::lock_guard lock(impl_->mutex);
    session.swap(impl_->session);
  }
  if (session != nullptr) session->Close();
  return {};
}

}  // namespace holdfast
