// PrimaryEngine of lib/native.ts: one data-plane thread around a Primary.
#pragma once

#include <napi.h>

#include <memory>

namespace holdfast::js {

class PrimaryCore;

class PrimaryEngine : public Napi::ObjectWrap<PrimaryEngine> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit PrimaryEngine(const Napi::CallbackInfo& info);
  ~PrimaryEngine() override;

 private:
  Napi::Value Attach(const Napi::CallbackInfo& info);
  Napi::Value Connect(const Napi::CallbackInfo& info);
  Napi::Value ConnectDisks(const Napi::CallbackInfo& info);
  Napi::Value SyncDisks(const Napi::CallbackInfo& info);
  Napi::Value DiskProgress(const Napi::CallbackInfo& info);
  void SetStopPending(const Napi::CallbackInfo& info);
  Napi::Value DiskStats(const Napi::CallbackInfo& info);
  Napi::Value IndexDisks(const Napi::CallbackInfo& info);
  Napi::Value AwaitIndex(const Napi::CallbackInfo& info);
  Napi::Value BaseRound(const Napi::CallbackInfo& info);
  Napi::Value Prestage(const Napi::CallbackInfo& info);
  Napi::Value FindPopulated(const Napi::CallbackInfo& info);
  Napi::Value Capture(const Napi::CallbackInfo& info);
  Napi::Value Send(const Napi::CallbackInfo& info);
  Napi::Value ServePages(const Napi::CallbackInfo& info);
  Napi::Value ServeProgress(const Napi::CallbackInfo& info);
  Napi::Value Abort(const Napi::CallbackInfo& info);
  Napi::Value Disconnect(const Napi::CallbackInfo& info);
  Napi::Value Detach(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<PrimaryCore> core_;
};

}  // namespace holdfast::js
