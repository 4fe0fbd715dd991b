#include "js/relay.h"

#include <climits>
#include <string>
#include <utility>
#include <vector>

#include "js/bridge.h"
#include "js/counters.h"
#include "js/event_queue.h"
#include "js/fields.h"
#include "js/result_object.h"
#include "output/relay.h"

namespace holdfast::js {
namespace {

Napi::Object ToObject(Napi::Env env, const RelayEvent& event) {
  ResultObject object(env);
  switch (event.type) {
    case RelayEvent::Type::kConnected:
      return object.Text("type", "connected").object();
    case RelayEvent::Type::kDisconnected:
      return object.Text("type", "disconnected").Number("discardedFrames", event.frames).object();
    case RelayEvent::Type::kTargetLost:
      return object.Text("type", "target-lost").Number("errno", event.sys_errno).object();
    case RelayEvent::Type::kTargetFound:
      return object.Text("type", "target-found").object();
    case RelayEvent::Type::kController:
      return object.Text("type", "controller").Flag("connected", event.connected).object();
    case RelayEvent::Type::kEnded:
      return object.Text("type", "ended").object();
  }
  return object.object();
}

Napi::Object ToObject(Napi::Env env, const RelayStats& stats) {
  return ResultObject(env)
      .Number("heldFrames", stats.held_frames)
      .Number("heldBytes", stats.held_bytes)
      .Number("boundaryFrames", stats.boundary_frames)
      .Number("heldBytesPeak", stats.held_bytes_peak)
      .Number("outFrames", stats.out_frames)
      .Number("outBytes", stats.out_bytes)
      .Number("inFrames", stats.in_frames)
      .Number("inBytes", stats.in_bytes)
      .Number("droppedFrames", stats.dropped_frames)
      .Number("lastDropErrno", uint64_t{stats.last_drop_errno})
      .Flag("holding", (stats.flags & kRelayHolding) != 0)
      .Flag("qemuConnected", (stats.flags & kRelayQemuConnected) != 0)
      .Flag("targetConnected", (stats.flags & kRelayTargetConnected) != 0)
      .Flag("stalled", (stats.flags & kRelayStalled) != 0)
      .Flag("socketWide", (stats.flags & kRelaySocketWide) != 0)
      .Number("stalledMs", static_cast<double>(stats.stalled_us) / 1e3)
      .Number("stalls", uint64_t{stats.stalls})
      .Number("discardedFrames", uint64_t{stats.discarded_frames})
      .object();
}

using RelayEvents = EventQueue<RelayEvent, ToObject>;

std::unique_ptr<Target> TargetOf(Fields& fields, Napi::Env env) {
  Fields target(env, fields.Get("target"));
  if (target.Has("tap")) return MakeTapTarget(target.Text("tap"));
  if (target.Has("unix")) return MakeStreamTarget(target.Text("unix"));
  fields.Wrong("target", 0);
  return nullptr;
}

}  // namespace

// Beneath the JavaScript object: outlives the relay's thread, and holds the
// event loop until close().
class RelayCore : public Stoppable, public std::enable_shared_from_this<RelayCore> {
 public:
  explicit RelayCore(std::shared_ptr<Bridge> bridge) : bridge_(std::move(bridge)) {
    g_engines_open.fetch_add(1);
  }
  ~RelayCore() override {
    StopAndJoin();
    EndCount();
  }

  Status Start(Relay::Options options, std::shared_ptr<RelayEvents> events) {
    events_ = std::move(events);
    options.on_event = [this](const RelayEvent& event) {
      events_->Push(event);
      if (event.type != RelayEvent::Type::kEnded) return;
      bridge_->Post([self = weak_from_this()](Napi::Env env) {
        if (const auto core = self.lock()) core->Ended(env);
      });
    };
    auto relay = Relay::Start(std::move(options));
    if (!relay.ok()) return relay.error();
    relay_ = std::move(relay).value();
    return {};
  }

  RelayStats Stats() const { return relay_ == nullptr ? last_stats_ : relay_->Stats(); }

  Napi::Value Close(Napi::Env env) {
    const auto pending = Pending::Create(env);
    if (relay_ == nullptr) {
      pending->Settle(Undefined());
    } else {
      waiters_.push_back(pending);
      relay_->Stop();
    }
    return pending->promise();
  }

  void StopAndJoin() override {
    if (relay_ == nullptr) return;
    relay_->Stop();
    relay_->Join();
  }

  const std::shared_ptr<Bridge>& bridge() const { return bridge_; }

 private:
  // On the JavaScript thread, when the relay's thread has said its last word.
  void Ended(Napi::Env env) {
    relay_->Join();
    last_stats_ = relay_->Stats();
    relay_.reset();
    events_->Close();
    EndCount();
    for (const auto& waiter : std::exchange(waiters_, {})) waiter->Settle(Undefined());
    bridge_->ReleaseLoop(env);
    bridge_->Unregister(this);
  }

  void EndCount() {
    if (std::exchange(counted_, false)) g_engines_open.fetch_sub(1);
  }

  const std::shared_ptr<Bridge> bridge_;
  std::shared_ptr<RelayEvents> events_;
  std::vector<std::shared_ptr<Pending>> waiters_;
  RelayStats last_stats_;
  bool counted_ = true;
  std::unique_ptr<Relay> relay_;  // last: its thread pushes events
};

Napi::Function RelayObject::Define(Napi::Env env) {
  return DefineClass(env, "Relay",
                     {
                         InstanceMethod("stats", &RelayObject::Stats),
                         InstanceMethod("close", &RelayObject::Close),
                     });
}

RelayObject::RelayObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<RelayObject>(info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  Relay::Options options;
  options.qemu_socket = fields.Text("qemuSocket");
  options.target = TargetOf(fields, env);
  options.control_socket = fields.Text("controlSocket");
  options.held_bytes_max = fields.Whole("heldBytesMax");
  if (fields.Has("qemuSocketBytes")) {
    const uint64_t bytes = fields.Whole("qemuSocketBytes");
    if (bytes > INT_MAX / 2) fields.Wrong("qemuSocketBytes", 0);
    options.qemu_socket_bytes = static_cast<int>(bytes);
  }
  options.hold = fields.Flag("hold");
  const Napi::Function listener = fields.Callback("onEvent");
  if (!fields.Check()) return;
  const auto& bridge = Bridge::Of(env);
  auto core = std::make_shared<RelayCore>(bridge);
  const Status started =
      core->Start(std::move(options), std::make_shared<RelayEvents>(bridge, listener));
  if (!started.ok()) {
    ToJs(env, started.error()).ThrowAsJavaScriptException();
    return;
  }
  core_ = std::move(core);
  bridge->Register(core_);
  bridge->HoldLoop(env);
}

// A relay that was not closed goes on without its object, and is ended with the environment.
RelayObject::~RelayObject() = default;

Napi::Value RelayObject::Stats(const Napi::CallbackInfo& info) {
  return ToObject(info.Env(), core_->Stats());
}

Napi::Value RelayObject::Close(const Napi::CallbackInfo& info) { return core_->Close(info.Env()); }

}  // namespace holdfast::js
