#include "js/plug.h"

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "js/background.h"
#include "js/bridge.h"
#include "js/core.h"
#include "js/fields.h"
#include "js/result_object.h"
#include "output/plug.h"

namespace holdfast::js {

class PlugCore : public Core {
 public:
  PlugCore(std::shared_ptr<Bridge> bridge, std::unique_ptr<Plug> plug)
      : Core(std::move(bridge), "hf-plug"), plug_(std::move(plug)) {}
  ~PlugCore() override { StopAndJoin(); }

  Plug& plug() { return *plug_; }

 private:
  // Every call is bounded in time by itself.
  void Cancel() override {}
  void ReleaseResources() override { plug_.reset(); }
  void Ended() override {}

  std::unique_ptr<Plug> plug_;
};

namespace {

std::vector<std::string> Names(Fields& fields, const char* name) {
  std::vector<std::string> names;
  const Napi::Value value = fields.Get(name);
  if (!value.IsArray() || value.As<Napi::Array>().Length() == 0) {
    fields.Wrong(name, 0);
    return names;
  }
  const auto list = value.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::Value item = list.Get(i);
    if (!item.IsString()) fields.Wrong(name, 0);
    names.push_back(item.IsString() ? item.As<Napi::String>().Utf8Value() : std::string());
  }
  return names;
}

Result<Value> Changed(Plug& plug, PlugAction action) {
  const auto stats = plug.Change(action);
  if (!stats.ok()) return stats.error();
  return Value([before = stats.value()](Napi::Env env) -> Napi::Value {
    return ResultObject(env)
        .Number("heldFrames", before.held_frames)
        .Number("heldBytes", before.held_bytes)
        .Number("droppedFrames", before.dropped_frames)
        .object();
  });
}

}  // namespace

Napi::Function PlugObject::Define(Napi::Env env) {
  return DefineClass(env, "Plug",
                     {
                         InstanceMethod("adopt", &PlugObject::Adopt),
                         InstanceMethod("install", &PlugObject::Install),
                         InstanceMethod("buffer", &PlugObject::Buffer),
                         InstanceMethod("releaseOne", &PlugObject::ReleaseOne),
                         InstanceMethod("remove", &PlugObject::Remove),
                         InstanceMethod("close", &PlugObject::Close),
                     });
}

PlugObject::PlugObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<PlugObject>(info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  const std::vector<std::string> taps = Names(fields, "taps");
  const uint64_t held_bytes_max = fields.Whole("heldBytesMax");
  // The kernel's field is 32 bits wide, libnl's argument an int.
  if (held_bytes_max > std::numeric_limits<int32_t>::max()) fields.Wrong("heldBytesMax", 0);
  if (!fields.Check()) return;
  auto plug = Plug::Open(taps, static_cast<uint32_t>(held_bytes_max));
  if (!plug.ok()) {
    ToJs(env, plug.error()).ThrowAsJavaScriptException();
    return;
  }
  const auto& bridge = Bridge::Of(env);
  core_ = std::make_shared<PlugCore>(bridge, std::move(plug).value());
  bridge->Register(core_);
}

PlugObject::~PlugObject() {
  if (core_ == nullptr) return;
  core_->StopAndJoin();
  core_->bridge()->Unregister(core_.get());
}

Napi::Value PlugObject::Adopt(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    const auto adopted = core->plug().Adopt();
    if (!adopted.ok()) return adopted.error();
    return js::Value([found = adopted.value()](Napi::Env env) -> Napi::Value {
      return Napi::Boolean::New(env, found);
    });
  });
}

Napi::Value PlugObject::Install(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(),
                       [core = core_.get()] { return FromStatus(core->plug().Install()); });
}

Napi::Value PlugObject::Buffer(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()] {
    return Changed(core->plug(), PlugAction::kBuffer);
  });
}

Napi::Value PlugObject::ReleaseOne(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()] {
    return Changed(core->plug(), PlugAction::kReleaseOne);
  });
}

Napi::Value PlugObject::Remove(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(),
                       [core = core_.get()] { return FromStatus(core->plug().Remove()); });
}

Napi::Value PlugObject::Close(const Napi::CallbackInfo& info) {
  return core_->Close(info.Env(), Value());
}

Napi::Value ProbePlugAsync(const Napi::CallbackInfo& info) {
  return RunInBackground(info.Env(), [](const CancelSignal&) -> Result<Value> {
    return Value([probe = ProbePlug()](Napi::Env env) -> Napi::Value {
      ResultObject object(env);
      object.Flag("ok", probe.lacks.empty());
      if (!probe.lacks.empty()) object.Text("lacks", probe.lacks).Text("reason", probe.reason);
      return object.object();
    });
  });
}

}  // namespace holdfast::js
