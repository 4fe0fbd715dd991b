// The exports, nothing else: NativeBinding of lib/native.ts, TransferBinding of
// lib/transfer/binding.ts, TraceBinding of lib/trace/binding.ts,
// CheckpointBinding of lib/checkpoint/binding.ts.

#include <napi.h>

#include "js/bridge.h"
#include "js/checkpointer.h"
#include "js/disk_store.h"
#include "js/early_guest.h"
#include "js/functions.h"
#include "js/guest_clock.h"
#include "js/guest_trace.h"
#include "js/plug.h"
#include "js/primary_engine.h"
#include "js/receiver.h"
#include "js/relay.h"
#include "js/sched_trace.h"
#include "js/transfer_receiver.h"
#include "js/transfer_sender.h"

namespace {

Napi::Object Initialize(Napi::Env env, Napi::Object exports) {
  using namespace holdfast;
  js::Bridge::Create(env);
  exports.Set("probeKernel", Napi::Function::New(env, js::ProbeKernelAsync, "probeKernel"));
  exports.Set("probeSenders", Napi::Function::New(env, js::ProbeSendersSync, "probeSenders"));
  exports.Set("probePlug", Napi::Function::New(env, js::ProbePlugAsync, "probePlug"));
  exports.Set("findRamMappings",
              Napi::Function::New(env, js::FindRamMappingsAsync, "findRamMappings"));
  exports.Set("peerPid", Napi::Function::New(env, js::PeerPidSync, "peerPid"));
  exports.Set("sendWithFd", Napi::Function::New(env, js::SendWithFdSync, "sendWithFd"));
  exports.Set("lockFile", Napi::Function::New(env, js::LockFileSync, "lockFile"));
  exports.Set("hashFile", Napi::Function::New(env, js::HashFileAsync, "hashFile"));
  exports.Set("compareFiles", Napi::Function::New(env, js::CompareFilesAsync, "compareFiles"));
  exports.Set("readTracefs", Napi::Function::New(env, js::ReadTracefsSync, "readTracefs"));
  exports.Set("debugCounters", Napi::Function::New(env, js::DebugCounters, "debugCounters"));
  exports.Set("verifyLayers", Napi::Function::New(env, js::VerifyLayersAsync, "verifyLayers"));
  exports.Set("assembleRam", Napi::Function::New(env, js::AssembleRamAsync, "assembleRam"));
  exports.Set("mergeLayers", Napi::Function::New(env, js::MergeLayersAsync, "mergeLayers"));
  exports.Set("copySparse", Napi::Function::New(env, js::CopySparseAsync, "copySparse"));
  exports.Set("Checkpointer", js::CheckpointerObject::Define(env));
  exports.Set("DiskStore", js::DiskStoreObject::Define(env));
  exports.Set("EarlyGuest", js::EarlyGuestObject::Define(env));
  exports.Set("GuestClock", js::GuestClockObject::Define(env));
  exports.Set("GuestTrace", js::GuestTraceObject::Define(env));
  exports.Set("Plug", js::PlugObject::Define(env));
  exports.Set("PrimaryEngine", js::PrimaryEngine::Define(env));
  exports.Set("Receiver", js::ReceiverObject::Define(env));
  exports.Set("Relay", js::RelayObject::Define(env));
  exports.Set("SchedTrace", js::SchedTraceObject::Define(env));
  exports.Set("TransferSender", js::TransferSender::Define(env));
  exports.Set("TransferReceiver", js::TransferReceiver::Define(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(holdfast, Initialize)
