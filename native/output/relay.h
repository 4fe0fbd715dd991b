// The packet gate: a thread between QEMU's `-netdev stream` socket and the
// network.
//
//               ┌────────────────── relay ───────────────────┐
//     QEMU ───► │ HeldFrames: held until their checkpoint is  │ ───► target:
//     stream    │ acknowledged                                │      tap, or a
//     socket    │                                             │      stream socket
//          ◄─── │ FrameRing: passes at once                   │ ◄───
//               └──────▲──────────────────────────────────────┘
//                      │ control socket: HOLD, PREPARE, BOUNDARY, RELEASE, OPEN, STATS,
//                        PAUSE, SWITCH
//
// The boundary is exact because no frame comes once QEMU's `stop` has
// answered: what is in the socket then is all there is. Should the guest run
// on, what came too late to be drained only waits for the next checkpoint.
//
// It knows no epochs and decides nothing. It loses its controller: it goes on
// holding. It loses QEMU: what it held is gone with that QEMU's state. It
// loses the target: what is released meanwhile is dropped. docs/relay.md.
#pragma once

#include <cerrno>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "base/cancel.h"
#include "base/clock.h"
#include "base/thread.h"
#include "output/control_socket.h"
#include "output/held_frames.h"
#include "output/poller.h"
#include "output/target.h"

namespace holdfast {

// As setsockopt takes it: the kernel doubles it, and counts its overhead in, so
// that full frames get some 5 MiB, small ones far less.
inline constexpr int kQemuSocketBytes = 4 << 20;

struct RelayEvent {
  enum class Type { kConnected, kDisconnected, kTargetLost, kTargetFound, kController, kEnded };
  Type type = Type::kEnded;
  uint64_t frames = 0;     // kDisconnected: discarded
  int sys_errno = 0;       // kTargetLost
  bool connected = false;  // kController
};

class Relay {
 public:
  struct Options {
    std::string qemu_socket;
    std::unique_ptr<Target> target;
    std::string control_socket;
    uint64_t held_bytes_max = 0;
    int qemu_socket_bytes = kQemuSocketBytes;  // 0: left as it is
    bool hold = false;
    std::function<void(const RelayEvent&)> on_event;  // on the relay's thread
  };

  static Result<std::unique_ptr<Relay>> Start(Options options);
  ~Relay();
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  // Ends the thread soon; does not wait. Any thread.
  void Stop() { stop_.Cancel(); }
  void Join() { thread_.Join(); }
  // As of the last time that something happened. Any thread.
  RelayStats Stats() const;

 private:
  // Tries again every 10 ms for a second, then every 100 ms.
  struct Retry {
    double since_ms = 0;
    double next_ms = 0;
    void Begin(double now_ms) { since_ms = next_ms = now_ms; }
    bool Due(double now_ms) const { return now_ms >= next_ms; }
    void Failed(double now_ms) { next_ms = now_ms + (now_ms - since_ms < 1000 ? 10 : 100); }
  };

  Relay(Options options, HeldFrames held, FrameRing inbound);

  void Loop();
  void Dispatch(const epoll_event& event);
  void Connect();
  bool Paused() const { return MonotonicMs() < paused_until_ms_; }
  int WaitMs() const;
  bool more_to_send() const;

  // The rest of a turn: what follows from what has come.
  void SendReleased();
  void SendInbound();
  void TellOutput();
  void WatchAgain();
  void Publish();

  void OnQemu(uint32_t events);
  // Reads once; false: there is no more, or no room.
  bool ReadQemu(bool past_bound);
  void LoseQemu();
  // To whoever listens on QEMU's socket now; false: nobody does yet.
  bool SwitchQemu();
  void OpenTarget();
  void WatchTarget();
  void OnTarget(uint32_t events);
  void LoseTarget(int sys_errno);
  bool OnRequest(const ControlMessage& request);
  void OnController();
  void Tell(RelayEvent event) { options_.on_event(event); }

  Options options_;
  HeldFrames held_;
  FrameRing inbound_;
  CancelSignal stop_;
  Poller poller_;
  Watch stop_watch_;
  Watch qemu_watch_;
  Watch target_watch_;
  ControlSocket control_;
  Descriptor qemu_;
  bool qemu_seen_ = false;   // it has sent: it has accepted the connection
  bool qemu_blocked_ = false;
  bool target_blocked_ = false;
  double paused_until_ms_ = 0;
  bool target_told_lost_ = false;
  int target_errno_ = ENOTCONN;  // why it is not open
  bool controller_told_ = false;
  Retry qemu_retry_;
  Retry target_retry_;
  double stalled_since_ms_ = 0;  // 0: not stalled
  double stalled_ms_ = 0;
  RelayStats counts_;  // what only grows; the rest is filled in by Publish()

  mutable std::mutex published_mutex_;
  RelayStats published_;
  Thread thread_;  // last: it uses all of the above
};

}  // namespace holdfast
