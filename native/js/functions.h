// The free functions of lib/native.ts.
#pragma once

#include <napi.h>

namespace holdfast::js {

Napi::Value ProbeKernelAsync(const Napi::CallbackInfo& info);
Napi::Value ProbeSendersSync(const Napi::CallbackInfo& info);
Napi::Value FindRamMappingsAsync(const Napi::CallbackInfo& info);
Napi::Value PeerPidSync(const Napi::CallbackInfo& info);
void SendWithFdSync(const Napi::CallbackInfo& info);
Napi::Value LockFileSync(const Napi::CallbackInfo& info);
Napi::Value HashFileAsync(const Napi::CallbackInfo& info);
Napi::Value CompareFilesAsync(const Napi::CallbackInfo& info);
Napi::Value DebugCounters(const Napi::CallbackInfo& info);

}  // namespace holdfast::js
