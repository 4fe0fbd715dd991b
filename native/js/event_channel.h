// Receiver events on their way to JavaScript: bounded, never blocking.
//
// When JavaScript is so far behind that the channel is full, a new event takes
// the place of the last one of its kind: the newest commit says all that the
// ones before it said.
#pragma once

#include <napi.h>

#include <deque>
#include <memory>
#include <mutex>

#include "js/bridge.h"
#include "receive/receiver.h"

namespace holdfast::js {

class EventChannel : public std::enable_shared_from_this<EventChannel> {
 public:
  static constexpr size_t kEventsMax = 1024;

  EventChannel(std::shared_ptr<Bridge> bridge, const Napi::Function& listener)
      : bridge_(std::move(bridge)), listener_(Napi::Persistent(listener)) {}

  // Any thread.
  void Push(const ReceiverEvent& event);

  // JavaScript thread: nothing is delivered from now on.
  void Close() { listener_.Reset(); }

 private:
  void Deliver(Napi::Env env);

  const std::shared_ptr<Bridge> bridge_;
  Napi::FunctionReference listener_;  // JavaScript thread only

  std::mutex mutex_;  // guards the rest
  std::deque<ReceiverEvent> events_;
  bool wake_posted_ = false;
};

}  // namespace holdfast::js
