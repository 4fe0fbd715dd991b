#include "nbdkit/control_server.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <climits>
#include <cstring>

#include "base/kernel_abi.h"
#include "base/unix_socket.h"

namespace holdfast {
namespace {

size_t BodyBytes(const DiskMessage& request) {
  return request.type == static_cast<uint32_t>(DiskRequest::kSyncIdSet) ? sizeof(SyncId) : 0;
}

Result<uint64_t> Done(const Status& status, uint64_t value) {
  if (!status.ok()) return status.error();
  return value;
}

}  // namespace

Result<std::unique_ptr<ControlServer>> ControlServer::Listen(const std::string& path) {
  auto listener = ListenUnix(path);
  if (!listener.ok()) return listener.error();
  return std::unique_ptr<ControlServer>(new ControlServer(path, std::move(listener).value()));
}

ControlServer::~ControlServer() {
  ending_.Cancel();
  thread_.Join();
  ::unlink(path_.c_str());
}

void ControlServer::Begin(DiskServer& server, std::function<void()> vm_ended) {
  server_ = &server;
  vm_ended_ = std::move(vm_ended);
  thread_ = Thread("hf-control", [this] { Loop(); });
}

void ControlServer::Loop() {
  while (!ending_.cancelled()) {
    // poll() takes no notice of descriptors that are -1.
    std::array<pollfd, 4> waits{{{ending_.fd(), POLLIN, 0},
                                 {listener_.get(), POLLIN, 0},
                                 {controller_.get(), POLLIN, 0},
                                 {vm_.get(), POLLIN, 0}}};
    if (::poll(waits.data(), waits.size(), -1) <= 0) continue;
    if (waits[2].revents != 0) Receive();
    if (waits[1].revents != 0) Accept();
    if (waits[3].revents != 0) {
      vm_.Close();
      vm_ended_();
    }
  }
  Drop();
}

void ControlServer::Accept() {
  Descriptor next(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!next.valid()) return;
  Drop();
  controller_ = std::move(next);
  DiskMessage hello;
  hello.type = kDiskHello;
  hello.value = uint64_t{kDiskControlVersion} << 32;
  if (server_->logging()) hello.value |= kDiskLogging;
  if (server_->active()) hello.value |= kDiskActive;
  Send(std::as_bytes(std::span(&hello, 1)));
}

void ControlServer::Drop() {
  if (!controller_.valid()) return;
  controller_.Close();
  received_bytes_ = 0;
  server_->StopLog();
}

void ControlServer::Receive() {
  const ssize_t bytes = ::recv(controller_.get(), received_.data() + received_bytes_,
                               received_.size() - received_bytes_, MSG_DONTWAIT);
  if (bytes < 0 && errno == EAGAIN) return;
  if (bytes <= 0) return Drop();
  received_bytes_ += static_cast<size_t>(bytes);
  size_t taken = 0;
  while (received_bytes_ - taken >= sizeof(DiskMessage)) {
    DiskMessage request;
    std::memcpy(&request, received_.data() + taken, sizeof request);
    const size_t body_bytes = BodyBytes(request);
    if (received_bytes_ - taken < sizeof request + body_bytes) break;
    const std::span body(received_.data() + taken + sizeof request, body_bytes);
    taken += sizeof request + body_bytes;
    if (request.error != 0 || !Handle(request, body)) return Drop();
    if (!controller_.valid()) return;  // it does not read its answers
  }
  received_bytes_ -= taken;
  std::memmove(received_.data(), received_.data() + taken, received_bytes_);
}

bool ControlServer::Handle(const DiskMessage& request, std::span<const std::byte> body) {
  switch (static_cast<DiskRequest>(request.type)) {
    case DiskRequest::kLogStart:
      Answer(request, server_->StartLog());
      return true;
    case DiskRequest::kLogStop:
      server_->StopLog();
      Answer(request, uint64_t{0});
      return true;
    case DiskRequest::kMapRotate:
      Answer(request, server_->RotateMap());
      return true;
    case DiskRequest::kMapClear:
      Answer(request, server_->ClearMap());
      return true;
    case DiskRequest::kSyncIdSet: {
      SyncId sync_id;
      std::memcpy(sync_id.data(), body.data(), sync_id.size());
      Answer(request, Done(server_->SetSyncId(sync_id), 0));
      return true;
    }
    case DiskRequest::kActivate:
      Answer(request, Done(server_->Activate(), 0));
      return true;
    case DiskRequest::kBind:
      Answer(request, Bind(request.value));
      return true;
    case DiskRequest::kStats: {
      DiskStats stats = server_->stats();
      if (bound_) stats.flags |= kDiskBound;
      Answer(request, uint64_t{sizeof stats});
      Send(std::as_bytes(std::span(&stats, 1)));
      return true;
    }
  }
  return false;
}

Result<uint64_t> ControlServer::Bind(uint64_t pid) {
  if (pid == 0 || pid > INT_MAX) {
    errno = EINVAL;
    return Error::FromErrno("pidfd_open", "no process id");
  }
  Descriptor vm(abi::PidfdOpen(static_cast<pid_t>(pid)));
  if (!vm.valid()) return Error::FromErrno("pidfd_open", "the VM's process");
  vm_ = std::move(vm);
  bound_ = true;
  return uint64_t{0};
}

void ControlServer::Answer(const DiskMessage& request, const Result<uint64_t>& result) {
  DiskMessage answer;
  answer.type = request.type | kDiskAnswer;
  if (result.ok()) {
    answer.value = result.value();
  } else {
    const int error = result.error().sys_errno;
    answer.error = static_cast<uint32_t>(error != 0 ? error : EIO);
    std::fprintf(stderr, "holdfast: %s: %s\n", result.error().message.c_str(),
                 std::strerror(static_cast<int>(answer.error)));
  }
  Send(std::as_bytes(std::span(&answer, 1)));
}

// Small next to a socket's room: a controller with which this fails has stopped
// reading long ago.
void ControlServer::Send(std::span<const std::byte> bytes) {
  if (!controller_.valid()) return;
  const ssize_t sent = ::send(controller_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent != static_cast<ssize_t>(bytes.size())) Drop();
}

}  // namespace holdfast
