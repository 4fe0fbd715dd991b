// The relay's control socket: one controller at a time, the newest. Nothing
// here knows what the requests mean.
#pragma once

#include <array>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/result.h"
#include "output/control.h"
#include "output/poller.h"

namespace holdfast {

class ControlSocket {
 public:
  // Answers that a controller has not read; one that lets so many lie is dropped.
  static constexpr size_t kUnsentBytesMax = 64 << 10;

  ControlSocket(std::string path, uint32_t listener_tag, uint32_t controller_tag)
      : path_(std::move(path)), listener_watch_(listener_tag), controller_watch_(controller_tag) {}
  ~ControlSocket();
  ControlSocket(const ControlSocket&) = delete;
  ControlSocket& operator=(const ControlSocket&) = delete;

  Status Listen(Poller& poller);
  bool connected() const { return controller_.valid(); }

  // Takes a waiting connection, in place of the one there is. False: there was none.
  bool Accept();
  // Reads what is there and calls `handle` for each request, in order. `handle`
  // says false to a request that does not exist; that, and an end, drop the controller.
  void Receive(const std::function<bool(const ControlMessage&)>& handle);
  // Queues a message; Flush() sends what is queued.
  void Send(const ControlMessage& message) { Queue(std::as_bytes(std::span(&message, 1))); }
  void Send(const RelayStats& stats) { Queue(std::as_bytes(std::span(&stats, 1))); }
  void Flush();
  void Drop();

 private:
  void Queue(std::span<const std::byte> bytes);

  const std::string path_;
  Poller* poller_ = nullptr;
  Descriptor listener_;
  Descriptor controller_;
  Watch listener_watch_;
  Watch controller_watch_;
  std::array<std::byte, 64 * sizeof(ControlMessage)> received_;
  size_t received_bytes_ = 0;
  std::vector<std::byte> unsent_;
};

}  // namespace holdfast
