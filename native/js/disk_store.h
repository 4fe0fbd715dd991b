// DiskStore of lib/native.ts: blocking calls on a thread of its own, events
// through a bounded channel.
#pragma once

#include <napi.h>

#include <memory>

#include "disk/store.h"

namespace holdfast::js {

class DiskStoreCore;

class DiskStoreObject : public Napi::ObjectWrap<DiskStoreObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  // Null if it is none.
  static std::shared_ptr<DiskStore> StoreOf(const Napi::Value& value);

  explicit DiskStoreObject(const Napi::CallbackInfo& info);
  ~DiskStoreObject() override;

 private:
  Napi::Value Open(const Napi::CallbackInfo& info);
  Napi::Value Stats(const Napi::CallbackInfo& info);
  Napi::Value Retire(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<DiskStoreCore> core_;
};

}  // namespace holdfast::js
