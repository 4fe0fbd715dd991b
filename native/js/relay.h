// Relay of lib/native.ts. What it does is told to it through its control
// socket; this object only starts, watches and ends it.
#pragma once

#include <napi.h>

#include <memory>

namespace holdfast::js {

class RelayCore;

class RelayObject : public Napi::ObjectWrap<RelayObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit RelayObject(const Napi::CallbackInfo& info);
  ~RelayObject() override;

 private:
  Napi::Value Stats(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<RelayCore> core_;
};

}  // namespace holdfast::js
