// Checkpointer of lib/checkpoint/binding.ts: one data-plane thread around a
// native Checkpointer; and the functions over finished checkpoints.
#pragma once

#include <napi.h>

#include <memory>

namespace holdfast::js {

class CheckpointerCore;

class CheckpointerObject : public Napi::ObjectWrap<CheckpointerObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit CheckpointerObject(const Napi::CallbackInfo& info);
  ~CheckpointerObject() override;

 private:
  Napi::Value Attach(const Napi::CallbackInfo& info);
  Napi::Value Begin(const Napi::CallbackInfo& info);
  Napi::Value Round(const Napi::CallbackInfo& info);
  Napi::Value Capture(const Napi::CallbackInfo& info);
  Napi::Value Finish(const Napi::CallbackInfo& info);
  Napi::Value Commit(const Napi::CallbackInfo& info);
  Napi::Value GiveUp(const Napi::CallbackInfo& info);
  void CancelWrites(const Napi::CallbackInfo& info);
  Napi::Value Detach(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  std::shared_ptr<CheckpointerCore> core_;
};

// Each as a promise, on a thread of its own.
Napi::Value VerifyLayersAsync(const Napi::CallbackInfo& info);
Napi::Value AssembleRamAsync(const Napi::CallbackInfo& info);
Napi::Value MergeLayersAsync(const Napi::CallbackInfo& info);
Napi::Value CopySparseAsync(const Napi::CallbackInfo& info);

}  // namespace holdfast::js
