#include "js/guest_clock.h"

#include <string>
#include <utility>

#include "js/background.h"
#include "js/bridge.h"
#include "js/fields.h"

namespace holdfast::js {

Napi::Function GuestClockObject::Define(Napi::Env env) {
  return DefineClass(env, "GuestClock",
                     {
                         InstanceMethod("locate", &GuestClockObject::Locate),
                         InstanceMethod("beforePause", &GuestClockObject::BeforePause),
                         InstanceMethod("advance", &GuestClockObject::Advance),
                         InstanceMethod("forget", &GuestClockObject::Forget),
                     });
}

GuestClockObject::GuestClockObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<GuestClockObject>(info) {
  Fields fields(info.Env(), info[0]);
  const auto pid = static_cast<pid_t>(fields.Whole("pid"));
  if (fields.Check()) clock_ = std::make_shared<GuestClock>(pid);
}

// Reads some MiB: not on the JavaScript thread.
Napi::Value GuestClockObject::Locate(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const std::string path = fields.Text("statePath");
  if (!fields.Check()) return {};
  return RunInBackground(info.Env(), [clock = clock_, path](const CancelSignal&) -> Result<js::Value> {
    auto place = clock->Locate(path);
    if (!place.ok()) return place.error();
    return js::Value([clock, place = std::move(place).value()](Napi::Env env) -> Napi::Value {
      clock->Found(place);
      return env.Undefined();
    });
  });
}

// These are a few system calls that wait for nothing: less than handing them to
// another thread would cost, in the pause.
void GuestClockObject::BeforePause(const Napi::CallbackInfo& info) {
  const Status read = clock_->BeforePause();
  if (!read.ok()) ToJs(info.Env(), read.error()).ThrowAsJavaScriptException();
}

Napi::Value GuestClockObject::Advance(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const std::string path = fields.Text("statePath");
  const uint64_t stopped_ns = fields.BigWhole("stoppedNs");
  if (!clock_->located()) fields.Wrong("locate() first", 0);
  if (!fields.Check()) return {};
  const auto advanced_ns = clock_->Advance(path, static_cast<int64_t>(stopped_ns));
  if (!advanced_ns.ok()) {
    ToJs(info.Env(), advanced_ns.error()).ThrowAsJavaScriptException();
    return {};
  }
  return Napi::Number::New(info.Env(), static_cast<double>(advanced_ns.value()) / 1e6);
}

void GuestClockObject::Forget(const Napi::CallbackInfo&) { clock_->Forget(); }

}  // namespace holdfast::js
