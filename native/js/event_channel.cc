#include "js/event_channel.h"

#include <algorithm>
#include <utility>

#include "js/result_object.h"

namespace holdfast::js {
namespace {

Napi::Object ToObject(Napi::Env env, const ReceiverEvent& event) {
  ResultObject object(env);
  switch (event.type) {
    case ReceiverEvent::Type::kConnected:
      return object.Text("type", "connected").object();
    case ReceiverEvent::Type::kRound:
      return object.Text("type", "round")
          .Number("pages", event.pages)
          .Number("zeroPages", event.zero_pages)
          .Number("bytes", event.bytes)
          .object();
    case ReceiverEvent::Type::kCommitted:
      if (event.state != nullptr) {
        object.Set("state", Napi::Buffer<std::byte>::Copy(env, event.state->data(),
                                                          event.state->size()));
      }
      return object.Text("type", "committed")
          .Number("epoch", event.epoch)
          .Number("pages", event.pages)
          .Number("zeroPages", event.zero_pages)
          .Number("bytes", event.bytes)
          .Number("receiveMs", event.millis)
          .Number("receiveCpuMs", event.cpu_ms)
          .Number("receiveSyscalls", event.syscalls)
          .Number("digestMs", event.digest_ms)
          .object();
    case ReceiverEvent::Type::kApplied:
      return object.Text("type", "applied")
          .Number("epoch", event.epoch)
          .Number("applyMs", event.millis)
          .object();
    case ReceiverEvent::Type::kDisconnected: {
      const Napi::Object error = ToJs(env, event.error).Value();
      return object.Text("type", "disconnected")
          .Number("droppedEpoch", event.epoch)
          .Set("code", error.Get("code"))
          .Set("message", error.Get("message"))
          .object();
    }
  }
  return object.object();
}

}  // namespace

void EventChannel::Push(const ReceiverEvent& event) {
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
  bridge_->Post([self = shared_from_this()](Napi::Env env) { self->Deliver(env); });
}

void EventChannel::Deliver(Napi::Env env) {
  std::deque<ReceiverEvent> ready;
  {
    const std::lock_guard lock(mutex_);
    ready.swap(events_);
    wake_posted_ = false;
  }
  for (const ReceiverEvent& event : ready) {
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

}  // namespace holdfast::js
