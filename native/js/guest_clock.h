// GuestClock of lib/native.ts.
#pragma once

#include <napi.h>

#include <memory>

#include "guest/guest_clock.h"

namespace holdfast::js {

class GuestClockObject : public Napi::ObjectWrap<GuestClockObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit GuestClockObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value Locate(const Napi::CallbackInfo& info);
  void BeforePause(const Napi::CallbackInfo& info);
  Napi::Value Advance(const Napi::CallbackInfo& info);
  void Forget(const Napi::CallbackInfo& info);

  // Shared with a search that is under way.
  std::shared_ptr<GuestClock> clock_;
};

}  // namespace holdfast::js
