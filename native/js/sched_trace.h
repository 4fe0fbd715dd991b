// SchedTrace of lib/trace/binding.ts.
#pragma once

#include <napi.h>

#include <memory>

namespace holdfast::js {

// readTracefs of the same.
Napi::Value ReadTracefsSync(const Napi::CallbackInfo& info);

class SchedTraceCore;

class SchedTraceObject : public Napi::ObjectWrap<SchedTraceObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit SchedTraceObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value Start(const Napi::CallbackInfo& info);
  Napi::Value Take(const Napi::CallbackInfo& info);
  Napi::Value Stats(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<SchedTraceCore> core_;
};

}  // namespace holdfast::js
