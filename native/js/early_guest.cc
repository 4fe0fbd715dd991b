#include "js/early_guest.h"

#include <mutex>
#include <utility>
#include <vector>

#include "checkpoint/chain_origin.h"
#include "js/bridge.h"
#include "js/core.h"
#include "js/engine_fields.h"
#include "js/event_queue.h"
#include "js/fields.h"
#include "js/layer_fields.h"
#include "js/receiver.h"
#include "js/result_object.h"
#include "postcopy/early_guest.h"
#include "postcopy/link_origin.h"

namespace holdfast::js {
namespace {

Napi::Object ToObject(Napi::Env env, const FaultServerEvent& event) {
  ResultObject object(env);
  const auto failed = [&](const char* type) {
    const Napi::Object error = ToJs(env, event.error).Value();
    return object.Text("type", type)
        .Set("code", error.Get("code"))
        .Set("message", error.Get("message"))
        .object();
  };
  switch (event.type) {
    case FaultServerEvent::Type::kListed:
      return object.Text("type", "listed").Number("pages", event.pages).object();
    case FaultServerEvent::Type::kLost: return failed("lost");
    case FaultServerEvent::Type::kFound: return object.Text("type", "found").object();
    case FaultServerEvent::Type::kComplete: return object.Text("type", "complete").object();
    case FaultServerEvent::Type::kFailed: return failed("failed");
  }
  return object.object();
}

using Channel = EventQueue<FaultServerEvent, ToObject>;

Napi::Object ToObject(Napi::Env env, const FaultServer::Stats& stats) {
  return ResultObject(env)
      .Flag("listed", stats.listed)
      .Number("pages", stats.pages)
      .Number("pagesLeft", stats.pages_left)
      .Number("demandedPages", stats.demanded_pages)
      .Number("backgroundPages", stats.background_pages)
      .Number("zeroPages", stats.zero_pages)
      .Number("faults", stats.faults)
      .Number("waitingFaults", stats.waiting)
      .Number("faultP50Us", stats.p50_us)
      .Number("faultP99Us", stats.p99_us)
      .Number("faultMaxUs", stats.max_us)
      .object();
}

EarlyGuest::OriginMaker ToOriginMaker(Napi::Env env, Fields& outer) {
  const Napi::Value value = outer.Get("origin");
  Fields fields(env, value);
  if (fields.Has("receiver")) {
    auto links = ReceiverObject::PageLinksOf(fields.Get("receiver"));
    if (links == nullptr) outer.Wrong("origin", 0);
    return [links](uint64_t ram_pages, uint32_t page_size) -> Result<std::unique_ptr<PageOrigin>> {
      auto made = LinkOrigin::Create(links, ram_pages, page_size);
      if (!made.ok()) return made.error();
      return std::unique_ptr<PageOrigin>(std::move(made).value());
    };
  }
  const std::vector<LayerFiles> layers = ToLayers(env, fields);
  if (layers.empty()) outer.Wrong("origin", 0);
  return [layers](uint64_t ram_pages, uint32_t page_size) {
    return MakeChainOrigin(layers, ram_pages, page_size);
  };
}

}  // namespace

class EarlyGuestCore : public Core {
 public:
  EarlyGuestCore(std::shared_ptr<Bridge> bridge, const EarlyGuest::Options& options,
                 EarlyGuest::OriginMaker make_origin, std::shared_ptr<Channel> channel)
      : Core(std::move(bridge), "hf-early"),
        channel_(std::move(channel)),
        options_(options),
        make_origin_(std::move(make_origin)) {}
  ~EarlyGuestCore() override { StopAndJoin(); }

  Channel& channel() { return *channel_; }

  // The core's thread.
  Status Start() {
    if (guest() != nullptr) return Error::Of(ErrorCode::kLimit, "it has been started already");
    auto started = EarlyGuest::Start(options_, make_origin_,
                                     [channel = channel_](const FaultServerEvent& event) {
                                       channel->Push(event);
                                     });
    if (!started.ok()) return started.error();
    const std::lock_guard lock(mutex_);
    guest_ = std::move(started).value();
    return {};
  }

  void Stop() {
    if (const auto held = guest()) held->Stop();
  }

  Status Release() {
    const auto held = guest();
    return held == nullptr ? Status() : held->Release();
  }

  // Any thread.
  std::shared_ptr<EarlyGuest> guest() {
    const std::lock_guard lock(mutex_);
    return guest_;
  }

 private:
  // Its calls are bounded in time by themselves.
  void Cancel() override {}
  void ReleaseResources() override {
    const std::lock_guard lock(mutex_);
    guest_.reset();
  }
  void Ended() override { make_origin_ = nullptr; }

  const std::shared_ptr<Channel> channel_;
  const EarlyGuest::Options options_;
  EarlyGuest::OriginMaker make_origin_;  // holds the receiver's connections
  std::mutex mutex_;
  std::shared_ptr<EarlyGuest> guest_;  // last: its thread pushes into the channel
};

Napi::Function EarlyGuestObject::Define(Napi::Env env) {
  return DefineClass(env, "EarlyGuest",
                     {
                         InstanceMethod("start", &EarlyGuestObject::Start),
                         InstanceMethod("stats", &EarlyGuestObject::Stats),
                         InstanceMethod("stop", &EarlyGuestObject::Stop),
                         InstanceMethod("release", &EarlyGuestObject::Release),
                         InstanceMethod("close", &EarlyGuestObject::Close),
                     });
}

EarlyGuestObject::EarlyGuestObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<EarlyGuestObject>(info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  EarlyGuest::Options options;
  options.empty_all = fields.Flag("emptyAll");
  auto make_origin = ToOriginMaker(env, fields);
  const Napi::Function listener = fields.Callback("onEvent");
  if (!CheckWithRam(env, fields, options.ram)) return;
  const auto& bridge = Bridge::Of(env);
  auto channel = std::make_shared<Channel>(bridge, listener);
  core_ = std::make_shared<EarlyGuestCore>(bridge, options, std::move(make_origin),
                                           std::move(channel));
  bridge->Register(core_);
}

EarlyGuestObject::~EarlyGuestObject() {
  if (core_ == nullptr) return;
  core_->StopAndJoin();
  core_->channel().Close();
  core_->bridge()->Unregister(core_.get());
}

Napi::Value EarlyGuestObject::Start(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    const Status started = core->Start();
    if (!started.ok()) return started.error();
    return js::Value([inject_ms = core->guest()->inject_ms()](Napi::Env env) -> Napi::Value {
      return ResultObject(env).Number("injectMs", inject_ms).object();
    });
  });
}

Napi::Value EarlyGuestObject::Stats(const Napi::CallbackInfo& info) {
  const auto guest = core_->guest();
  return ToObject(info.Env(), guest == nullptr ? FaultServer::Stats() : guest->stats());
}

Napi::Value EarlyGuestObject::Stop(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    core->Stop();
    return FromStatus(Status());
  });
}

Napi::Value EarlyGuestObject::Release(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    return FromStatus(core->Release());
  });
}

Napi::Value EarlyGuestObject::Close(const Napi::CallbackInfo& info) {
  const Napi::Value closed = core_->Close(info.Env(), Value());
  core_->channel().Close();
  return closed;
}

}  // namespace holdfast::js
