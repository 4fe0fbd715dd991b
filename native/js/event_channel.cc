#include "js/event_channel.h"

#include "js/result_object.h"

namespace holdfast::js {

Napi::Object ToObject(Napi::Env env, const ReceiverEvent& event) {
  ResultObject object(env);
  switch (event.type) {
    case ReceiverEvent::Type::kConnected:
      return object.Text("type", "connected").object();
    case ReceiverEvent::Type::kRound:
      return object.Text("type", "round")
          .Number("pages", event.pages)
          .Number("zeroPages", event.zero_pages)
          .Number("bytes", event.bytes)
          .object();
    case ReceiverEvent::Type::kPrefix:
      return object.Text("type", "prefix").Number("prefix", event.prefix).object();
    case ReceiverEvent::Type::kCommitted:
      if (event.state != nullptr) {
        object.Set("state", Napi::Buffer<std::byte>::Copy(env, event.state->data(),
                                                          event.state->size()));
      }
      return object.Text("type", "committed")
          .Number("epoch", event.epoch)
          .Number("pages", event.pages)
          .Number("zeroPages", event.zero_pages)
          .Number("bytes", event.bytes)
          .Number("receiveMs", event.millis)
          .Number("receiveCpuMs", event.cpu_ms)
          .Number("receiveSyscalls", event.syscalls)
          .Number("digestMs", event.digest_ms)
          .Number("prefix", event.prefix)
          .object();
    case ReceiverEvent::Type::kApplied:
      return object.Text("type", "applied")
          .Number("epoch", event.epoch)
          .Number("applyMs", event.millis)
          .object();
    case ReceiverEvent::Type::kDisconnected: {
      const Napi::Object error = ToJs(env, event.error).Value();
      return object.Text("type", "disconnected")
          .Number("droppedEpoch", event.epoch)
          .Set("code", error.Get("code"))
          .Set("message", error.Get("message"))
          .object();
    }
  }
  return object.object();
}

}  // namespace holdfast::js
