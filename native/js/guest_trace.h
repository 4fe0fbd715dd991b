// GuestTrace of lib/trace/binding.ts.
#pragma once

#include <napi.h>

#include <memory>

namespace holdfast::js {

class GuestTraceCore;

class GuestTraceObject : public Napi::ObjectWrap<GuestTraceObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit GuestTraceObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value Start(const Napi::CallbackInfo& info);
  Napi::Value Take(const Napi::CallbackInfo& info);
  Napi::Value Stats(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<GuestTraceCore> core_;
};

}  // namespace holdfast::js
