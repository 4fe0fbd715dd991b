// Plug and probePlug of lib/native.ts: the gate's netlink requests on a thread
// of their own, for the kernel may let one wait behind others' for its lock.
#pragma once

#include <napi.h>

#include <memory>

namespace holdfast::js {

class PlugCore;

class PlugObject : public Napi::ObjectWrap<PlugObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit PlugObject(const Napi::CallbackInfo& info);
  ~PlugObject() override;

 private:
  Napi::Value Adopt(const Napi::CallbackInfo& info);
  Napi::Value Install(const Napi::CallbackInfo& info);
  Napi::Value Buffer(const Napi::CallbackInfo& info);
  Napi::Value ReleaseOne(const Napi::CallbackInfo& info);
  Napi::Value Remove(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<PlugCore> core_;
};

Napi::Value ProbePlugAsync(const Napi::CallbackInfo& info);

}  // namespace holdfast::js
