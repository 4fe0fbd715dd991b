// TransferReceiver of lib/transfer/binding.ts: a Receiver with one session from
// the start, whose epochs are applied no faster than JavaScript takes them.
#pragma once

#include <napi.h>

#include <memory>

namespace holdfast::js {

class TransferReceiverCore;

class TransferReceiver : public Napi::ObjectWrap<TransferReceiver> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit TransferReceiver(const Napi::CallbackInfo& info);
  ~TransferReceiver() override;

 private:
  Napi::Value Open(const Napi::CallbackInfo& info);
  Napi::Value Allow(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  // Like a listening server, an open receiver keeps itself and the loop alive.
  void HoldWhileOpen(Napi::Env env);
  void Release(Napi::Env env);

  std::shared_ptr<TransferReceiverCore> core_;
  bool held_ = false;
};

}  // namespace holdfast::js
