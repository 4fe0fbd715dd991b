// EarlyGuest of lib/native-early.ts: blocking calls on a thread of its own,
// events through a bounded channel.
#pragma once

#include <napi.h>

#include <memory>

namespace holdfast::js {

class EarlyGuestCore;

class EarlyGuestObject : public Napi::ObjectWrap<EarlyGuestObject> {
 public:
  static Napi::Function Define(Napi::Env env);

  explicit EarlyGuestObject(const Napi::CallbackInfo& info);
  ~EarlyGuestObject() override;

 private:
  Napi::Value Start(const Napi::CallbackInfo& info);
  Napi::Value Stats(const Napi::CallbackInfo& info);
  Napi::Value Stop(const Napi::CallbackInfo& info);
  Napi::Value Release(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<EarlyGuestCore> core_;
};

}  // namespace holdfast::js
