// TransferSender of lib/transfer/binding.ts: one thread around a TransferEngine.
#pragma once

#include <napi.h>

#include <memory>

namespace holdfast::js {

class TransferSenderCore;

class TransferSender : public Napi::ObjectWrap<TransferSender> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit TransferSender(const Napi::CallbackInfo& info);
  ~TransferSender() override;

 private:
  Napi::Value Open(const Napi::CallbackInfo& info);
  Napi::Value Stage(const Napi::CallbackInfo& info);
  Napi::Value Send(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<TransferSenderCore> core_;
};

}  // namespace holdfast::js
