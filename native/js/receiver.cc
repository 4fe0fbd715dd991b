#include "js/receiver.h"

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "js/bridge.h"
#include "js/core.h"
#include "js/disk_fields.h"
#include "js/disk_store.h"
#include "js/event_channel.h"
#include "js/fields.h"
#include "js/result_object.h"
#include "receive/receiver.h"
#include "receive/standby_stream.h"

namespace holdfast::js {
namespace {

constexpr napi_type_tag kTag = {0x72656365'69766572, 0x686f6c64'66617374};

}  // namespace

class ReceiverCore : public Core {
 public:
  ReceiverCore(std::shared_ptr<Bridge> bridge, std::unique_ptr<Receiver> receiver,
               std::shared_ptr<EventChannel> channel)
      : Core(std::move(bridge), "hf-receiver"),
        port_(receiver->port()),
        page_links_(receiver->page_links()),
        channel_(std::move(channel)),
        receiver_(std::move(receiver)) {}
  ~ReceiverCore() override { StopAndJoin(); }

  void StopAndJoin() override {
    Core::StopAndJoin();
    StopFeeds();
  }

  Receiver& receiver() { return *receiver_; }
  EventChannel& channel() { return *channel_; }
  uint16_t port() const { return port_; }
  // JavaScript thread; nothing once it has ended.
  const std::shared_ptr<PageLinks>& page_links() const { return page_links_; }

  // JavaScript thread, and so are the next two. The stream to the standby at this
  // path; that of any other is given up.
  const std::shared_ptr<StandbyStream>& StreamTo(const std::string& path) {
    if (standby_ == nullptr || standby_->path() != path) {
      EndStream();
      standby_ = std::make_shared<StandbyStream>(path);
    }
    return standby_;
  }
  void EndStream() {
    if (standby_ != nullptr) standby_->Cancel();
    standby_.reset();
  }

  // On a thread of its own: a standby that hangs must not keep a fence waiting.
  Napi::Value Feed(Napi::Env env, Napi::Object owner, const std::string& path) {
    if (closing()) return Rejected(env, Closed());
    if (feeds_ == nullptr) feeds_ = std::make_unique<JobThread>("hf-feed", kJobsMax);
    const auto pending = Pending::Create(env, owner);
    const auto push = feeds_->TryPush([this, pending, stream = StreamTo(path)](bool run) {
      if (!run) return pending->Settle(Closed());
      auto prefix = receiver_->Feed(*stream);
      if (!prefix.ok()) return pending->Settle(prefix.error());
      pending->Settle(js::Value([number = prefix.value()](Napi::Env result_env) -> Napi::Value {
        return ResultObject(result_env).Number("prefix", number).object();
      }));
    });
    if (push == JobThread::Push::kFull) {
      pending->Settle(Error::Of(ErrorCode::kLimit, "too many calls are waiting"));
    } else if (push == JobThread::Push::kStopping) {
      pending->Settle(Closed());
    }
    return pending->promise();
  }
  static Error Closed() { return Error::Of(ErrorCode::kCancelled, "closed"); }

 private:
  // Receiver's calls are bounded in time by themselves.
  void Cancel() override { EndStream(); }
  void ReleaseResources() override {
    StopFeeds();
    receiver_.reset();
  }
  void Ended() override { page_links_.reset(); }
  // The one under way has been cancelled.
  void StopFeeds() {
    if (feeds_ == nullptr) return;
    feeds_->Stop({});
    feeds_->Join();
  }

  const uint16_t port_;
  std::shared_ptr<PageLinks> page_links_;
  const std::shared_ptr<EventChannel> channel_;
  std::shared_ptr<StandbyStream> standby_;
  std::unique_ptr<Receiver> receiver_;  // behind the channel: its threads push into it
  std::unique_ptr<JobThread> feeds_;    // last: it uses the receiver
};

Napi::Function ReceiverObject::Define(Napi::Env env) {
  return DefineClass(env, "Receiver",
                     {
                         InstanceAccessor("port", &ReceiverObject::Port, nullptr),
                         InstanceMethod("idleMs", &ReceiverObject::IdleMs),
                         InstanceMethod("openSession", &ReceiverObject::OpenSession),
                         InstanceMethod("fence", &ReceiverObject::Fence),
                         InstanceMethod("feedStandby", &ReceiverObject::FeedStandby),
                         InstanceMethod("endFeed", &ReceiverObject::EndFeed),
                         InstanceMethod("writeState", &ReceiverObject::WriteState),
                         InstanceMethod("closeSession", &ReceiverObject::CloseSession),
                         InstanceMethod("close", &ReceiverObject::Close),
                     });
}

ReceiverObject::ReceiverObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<ReceiverObject>(info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  const std::string host = fields.Text("host");
  const uint64_t port = fields.Whole("port");
  if (port > 65535) fields.Wrong("port", 0);
  const Napi::Function listener = fields.Callback("onEvent");
  if (!fields.Check()) return;
  const auto& bridge = Bridge::Of(env);
  auto channel = std::make_shared<EventChannel>(bridge, listener);
  auto receiver =
      Receiver::Listen(host, static_cast<uint16_t>(port),
                       [channel](const ReceiverEvent& event) { channel->Push(event); });
  if (!receiver.ok()) {
    ToJs(env, receiver.error()).ThrowAsJavaScriptException();
    return;
  }
  core_ = std::make_shared<ReceiverCore>(bridge, std::move(receiver).value(), std::move(channel));
  bridge->Register(core_);
  info.This().As<Napi::Object>().TypeTag(&kTag);
}

std::shared_ptr<PageLinks> ReceiverObject::PageLinksOf(const Napi::Value& value) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kTag)) return nullptr;
  return Unwrap(value.As<Napi::Object>())->core_->page_links();
}

ReceiverObject::~ReceiverObject() {
  if (core_ == nullptr) return;
  core_->StopAndJoin();
  core_->channel().Close();
  core_->bridge()->Unregister(core_.get());
}

Napi::Value ReceiverObject::Port(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), core_->port());
}

Napi::Value ReceiverObject::IdleMs(const Napi::CallbackInfo& info) {
  const double idle_ms = core_->closing() ? std::numeric_limits<double>::infinity()
                                          : core_->receiver().idle_ms();
  return Napi::Number::New(info.Env(), idle_ms);
}

Napi::Value ReceiverObject::OpenSession(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  Receiver::Session session;
  session.token = fields.Token("token");
  session.ram_path = fields.Text("ramPath");
  session.ram_bytes = fields.Whole("ramBytes");
  session.page_size = static_cast<uint32_t>(fields.Whole("pageSize"));
  session.epoch_bytes_max = fields.Whole("epochBytesMax");
  session.device_bytes_max = fields.Whole("deviceBytesMax");
  if (fields.Has("verify")) session.verify = fields.Flag("verify");
  if (fields.Has("sparse")) session.sparse = fields.Flag("sparse");
  if (fields.Has("disks")) {
    session.disks = DiskStoreObject::StoreOf(fields.Get("disks"));
    if (session.disks == nullptr) fields.Wrong("disks", 0);
  }
  if (fields.Has("referenceDisks")) {
    session.reference_disks = ToReferenceDisks(info.Env(), fields);
  }
  if (!fields.Check()) return {};
  return core_->Submit(info.Env(), Value(), [this, session]() -> Result<js::Value> {
    const Status opened = core_->receiver().OpenSession(session);
    if (!opened.ok()) return opened.error();
    return js::Value([this, has = core_->receiver().reference_disks()](Napi::Env env) -> Napi::Value {
      HoldForSession(env);
      const Napi::Array disks = Napi::Array::New(env, has.size());
      for (uint32_t i = 0; i < has.size(); i++) disks.Set(i, Napi::Boolean::New(env, has[i]));
      return ResultObject(env).Set("referenceDisks", disks).object();
    });
  });
}

Napi::Value ReceiverObject::Fence(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    auto fenced = core->receiver().Fence();
    if (!fenced.ok()) return fenced.error();
    return js::Value([result = fenced.value()](Napi::Env env) -> Napi::Value {
      return ResultObject(env)
          .Number("epoch", result.epoch)
          .Number("fenceMs", result.fence_ms)
          .Flag("partialEpochDropped", result.partial_epoch_dropped)
          .object();
    });
  });
}

namespace {
// Throws where it is none.
std::optional<std::string> ToSocketPath(const Napi::CallbackInfo& info) {
  if (info[0].IsString()) return info[0].As<Napi::String>().Utf8Value();
  Napi::TypeError::New(info.Env(), "holdfast: bad or missing value: socketPath")
      .ThrowAsJavaScriptException();
  return std::nullopt;
}
}  // namespace

Napi::Value ReceiverObject::FeedStandby(const Napi::CallbackInfo& info) {
  const auto path = ToSocketPath(info);
  if (!path) return {};
  return core_->Feed(info.Env(), Value(), *path);
}

void ReceiverObject::EndFeed(const Napi::CallbackInfo&) { core_->EndStream(); }

Napi::Value ReceiverObject::WriteState(const Napi::CallbackInfo& info) {
  const auto path = ToSocketPath(info);
  if (!path) return {};
  bool follow_clock = false;
  if (!info[1].IsUndefined()) {
    Fields options(info.Env(), info[1]);
    follow_clock = options.Flag("followClock");
    if (!options.Check()) return {};
  }
  if (core_->closing()) return Rejected(info.Env(), ReceiverCore::Closed());
  return core_->Submit(info.Env(), Value(), [core = core_.get(), stream = core_->StreamTo(*path),
                                             follow_clock]() -> Result<js::Value> {
    auto written = core->receiver().WriteState(*stream, follow_clock);
    if (!written.ok()) return written.error();
    return js::Value([result = written.value()](Napi::Env env) -> Napi::Value {
      ResultObject object(env);
      object.Number("bytes", result.bytes).Number("writeMs", result.write_ms);
      if (result.clock_advanced_ns) {
        object.Number("clockAdvancedMs", static_cast<double>(*result.clock_advanced_ns) / 1e6);
      }
      return object.object();
    });
  });
}

Napi::Value ReceiverObject::CloseSession(const Napi::CallbackInfo& info) {
  core_->EndStream();
  return core_->Submit(info.Env(), Value(), [this]() -> Result<js::Value> {
    const Status closed = core_->receiver().CloseSession();
    if (!closed.ok()) return closed.error();
    return js::Value([this](Napi::Env env) -> Napi::Value {
      ReleaseFromSession(env);
      return env.Undefined();
    });
  });
}

Napi::Value ReceiverObject::Close(const Napi::CallbackInfo& info) {
  // The promise that is returned holds both until all is closed.
  const Napi::Value closed = core_->Close(info.Env(), Value());
  core_->channel().Close();
  ReleaseFromSession(info.Env());
  return closed;
}

void ReceiverObject::HoldForSession(Napi::Env env) {
  if (session_held_ || core_->closing()) return;
  session_held_ = true;
  Ref();
  core_->bridge()->HoldLoop(env);
}

void ReceiverObject::ReleaseFromSession(Napi::Env env) {
  if (!std::exchange(session_held_, false)) return;
  core_->bridge()->ReleaseLoop(env);
  Unref();
}

}  // namespace holdfast::js
