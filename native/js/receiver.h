// Receiver of lib/native.ts: blocking calls on a thread of its own, events
// through a bounded channel.
#pragma once

#include <napi.h>

#include <memory>

namespace holdfast {
class PageLinks;
}

namespace holdfast::js {

class ReceiverCore;

class ReceiverObject : public Napi::ObjectWrap<ReceiverObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  // Where its page streams come in; null if it is no receiver.
  static std::shared_ptr<PageLinks> PageLinksOf(const Napi::Value& value);

  explicit ReceiverObject(const Napi::CallbackInfo& info);
  ~ReceiverObject() override;

 private:
  Napi::Value Port(const Napi::CallbackInfo& info);
  Napi::Value IdleMs(const Napi::CallbackInfo& info);
  Napi::Value OpenSession(const Napi::CallbackInfo& info);
  Napi::Value Fence(const Napi::CallbackInfo& info);
  Napi::Value FeedStandby(const Napi::CallbackInfo& info);
  void EndFeed(const Napi::CallbackInfo& info);
  Napi::Value WriteState(const Napi::CallbackInfo& info);
  Napi::Value CloseSession(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  // An open session keeps this object and the event loop alive.
  void HoldForSession(Napi::Env env);
  void ReleaseFromSession(Napi::Env env);

  std::shared_ptr<ReceiverCore> core_;
  bool session_held_ = false;
};

}  // namespace holdfast::js
