// Events of a native thread on their way to JavaScript: bounded, never blocking.
//
// When JavaScript is so far behind that the queue is full, a new event takes
// the place of the last one of its kind: the newest says all that the ones
// before it said.
#pragma once

#include <napi.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "js/bridge.h"

namespace holdfast::js {

// Event has a `type`; ToObject makes what the listener is called with.
template <typename Event, Napi::Object (*ToObject)(Napi::Env, const Event&)>
class EventQueue : public std::enable_shared_from_this<EventQueue<Event, ToObject>> {
 public:
  static constexpr size_t kEventsMax = 1024;

  EventQueue(std::shared_ptr<Bridge> bridge, const Napi::Function& listener)
      : bridge_(std::move(bridge)), listener_(Napi::Persistent(listener)) {}

  // Any thread.
  void Push(const Event& event) {
    const std::lock_guard lock(mutex_);
    if (events_.size() >= kEventsMax) {
      const auto same = std::find_if(events_.rbegin(), events_.rend(),
                                     [&](const auto& queued) { return queued.type == event.type; });
      if (same != events_.rend()) {
        events_.erase(std::next(same).base());
      } else {
        events_.pop_front();
      }
    }
    events_.push_back(event);
    if (std::exchange(wake_posted_, true)) return;
    bridge_->Post([self = this->shared_from_this()](Napi::Env env) { self->Deliver(env); });
  }

  // JavaScript thread: nothing is delivered from now on.
  void Close() { listener_.Reset(); }

 private:
  void Deliver(Napi::Env env) {
    std::deque<Event> ready;
    {
      const std::lock_guard lock(mutex_);
      ready.swap(events_);
      wake_posted_ = false;
    }
    for (const Event& event : ready) {
      if (listener_.IsEmpty()) return;
      const Napi::HandleScope scope(env);
      listener_.Call({ToObject(env, event)});
      // One listener's exception must not swallow the events behind it.
      if (env.IsExceptionPending()) {
        const Napi::Error thrown = env.GetAndClearPendingException();
        napi_fatal_exception(env, thrown.Value());
      }
    }
  }

  const std::shared_ptr<Bridge> bridge_;
  Napi::FunctionReference listener_;  // JavaScript thread only

  std::mutex mutex_;  // guards the rest
  std::deque<Event> events_;
  bool wake_posted_ = false;
};

}  // namespace holdfast::js
