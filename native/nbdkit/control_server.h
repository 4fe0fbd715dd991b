// The disk server's control socket, and what it waits for beside it: the end of
// the VM. One thread; one controller, the newest.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/cancel.h"
#include "base/descriptor.h"
#include "base/result.h"
#include "base/thread.h"
#include "nbdkit/disk_control.h"
#include "nbdkit/disk_server.h"

namespace holdfast {

class ControlServer {
 public:
  // Listens at `path`: who connects waits until Begin().
  static Result<std::unique_ptr<ControlServer>> Listen(const std::string& path);
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;
  ~ControlServer();  // the path goes, too

  // Makes its thread. `vm_ended` is called by it, when a VM to which this was bound ends.
  void Begin(DiskServer& server, std::function<void()> vm_ended);

 private:
  ControlServer(std::string path, Descriptor listener)
      : path_(std::move(path)), listener_(std::move(listener)) {}

  void Loop();
  void Accept();
  void Drop();  // the controller; without one nobody ships the log
  void Receive();
  // False: there is no such request.
  bool Handle(const DiskMessage& request, std::span<const std::byte> body);
  Result<uint64_t> Bind(uint64_t pid);
  void Answer(const DiskMessage& request, const Result<uint64_t>& result);
  void Send(std::span<const std::byte> bytes);

  const std::string path_;
  const Descriptor listener_;
  DiskServer* server_ = nullptr;
  std::function<void()> vm_ended_;
  Descriptor controller_;
  Descriptor vm_;  // a pidfd
  bool bound_ = false;
  std::array<std::byte, 64 * sizeof(DiskMessage)> received_;
  size_t received_bytes_ = 0;
  CancelSignal ending_;
  Thread thread_;  // last: it uses all of the above
};

}  // namespace holdfast
