#include "js/primary_engine.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <utility>

#include "js/bridge.h"
#include "js/core.h"
#include "js/engine_fields.h"
#include "js/disk_fields.h"
#include "js/fields.h"
#include "js/result_object.h"
#include "primary/primary.h"
#include "send/strategy.h"
#include "wire/frame.h"

namespace holdfast::js {

class PrimaryCore : public Core {
 public:
  PrimaryCore(std::shared_ptr<Bridge> bridge, const Primary::Options& options)
      : Core(std::move(bridge), "hf-primary"),
        primary_(std::make_unique<Primary>(options)),
        shipped_(primary_->shipped()),
        serve_progress_(primary_->serve_progress()) {}
  // The thread must be gone before the members it uses are.
  ~PrimaryCore() override { StopAndJoin(); }

  // Data-plane thread only.
  Primary& primary() { return *primary_; }

  // The rest: JavaScript thread only.

  std::shared_ptr<const ShippedDisks> shipped() const { return shipped_->Get(); }

  const holdfast::ServeProgress& serve_progress() const { return *serve_progress_; }

  // What belongs to the present connection is cut by this signal.
  std::shared_ptr<CancelSignal> link() const { return link_; }
  void CutLink() {
    if (closing()) return;
    link_->Cancel();
    link_ = std::make_shared<CancelSignal>();
  }
  // Set when a capture is accepted, cleared when its epoch has ended.
  std::atomic<bool> epoch_open{false};

 private:
  void Cancel() override {
    if (link_ != nullptr) link_->Cancel();
  }
  void ReleaseResources() override { primary_.reset(); }
  void Ended() override { link_.reset(); }

  std::shared_ptr<CancelSignal> link_ = std::make_shared<CancelSignal>();
  std::unique_ptr<Primary> primary_;
  const std::shared_ptr<const ShippedSlot> shipped_;
  const std::shared_ptr<const holdfast::ServeProgress> serve_progress_;
};

namespace {

Error Cut() { return Error::Of(ErrorCode::kCancelled, "disconnected"); }

Strategy ToStrategy(Fields& fields) {
  const auto strategy = StrategyNamed(fields.Text("strategy"));
  if (!strategy) fields.Wrong("strategy", 0);
  return strategy.value_or(Strategy::kCopy);
}

// 0 is no epoch's number on the wire.
uint64_t EpochField(Fields& fields) {
  const uint64_t epoch = fields.Whole("epoch");
  if (epoch < 1 || epoch > kEpochMax) fields.Wrong("epoch", 0);
  return epoch;
}

Primary::Peer ToPeer(Fields& fields) {
  Primary::Peer peer;
  peer.host = fields.Text("host");
  const uint64_t port = fields.Whole("port");
  if (port == 0 || port > 65535) fields.Wrong("port", 0);
  peer.port = static_cast<uint16_t>(port);
  peer.token = fields.Token("token");
  peer.timeout_ms = static_cast<int>(std::min<uint64_t>(fields.Whole("timeoutMs"), 3'600'000));
  return peer;
}

Primary::StateFile ToStateFile(Napi::Env env, const Napi::Value& value, Fields& outer,
                               const char* name) {
  Primary::StateFile file;
  if (value.IsEmpty() || !value.IsObject()) {
    outer.Wrong(name, 0);
    return file;
  }
  Fields fields(env, value);
  file.path = fields.Text("path");
  file.skip_bytes = fields.Whole("skipBytes");
  if (fields.Has("maxBytes")) file.bytes_max = fields.Whole("maxBytes");
  (void)fields.Check();
  return file;
}

Value ToValue(const Primary::Attached& attached) {
  return [attached](Napi::Env env) {
    return ResultObject(env)
        .Flag("adopted", attached.adopted)
        .Number("injectMs", attached.inject_ms)
        .object();
  };
}

ResultObject& With(ResultObject& object, Napi::Env env,
                   const std::optional<Primary::DiskPages>& pages) {
  if (!pages) return object;
  return object.Set("diskPages", ResultObject(env)
                                     .Number("referenced", pages->referenced)
                                     .Number("different", pages->different)
                                     .Number("unread", pages->unread)
                                     .Number("referenceBytes", pages->reference_bytes)
                                     .object());
}

Value ToValue(const DiskIndex::Progress& progress) {
  return [progress](Napi::Env env) {
    ResultObject object(env);
    object.Flag("ended", progress.ended)
        .Number("dataBytes", progress.data_bytes)
        .Number("readBytes", progress.read_bytes)
        .Number("blocks", progress.blocks)
        .Number("millis", progress.millis);
    if (progress.error) object.Text("error", progress.error->message);
    return object.object();
  };
}

Value ToValue(const Primary::Round& round) {
  return [round](Napi::Env env) {
    ResultObject object(env);
    return With(object, env, round.disk_pages)
        .Number("pages", round.pages)
        .Number("zeroPages", round.zero_pages)
        .Number("skippedPages", round.skipped_pages)
        .Number("bytes", round.bytes)
        .Number("dirtyPages", round.dirty_pages)
        .Number("scanMs", round.scan_ms)
        .Number("sendMs", round.send_ms)
        .Number("lookMs", round.look_ms)
        .Number("countMs", round.count_ms)
        .object();
  };
}

Value ToValue(const Primary::Prestaged& prestaged) {
  return [prestaged](Napi::Env env) {
    return ResultObject(env)
        .Number("pages", prestaged.pages)
        .Number("heldBackPages", prestaged.held_back_pages)
        .Number("supersededPages", prestaged.superseded_pages)
        .Number("supersededSentPages", prestaged.superseded_sent_pages)
        .Number("bytes", prestaged.bytes)
        .Number("scanMs", prestaged.scan_ms)
        .Number("copyMs", prestaged.copy_ms)
        .Number("sendMs", prestaged.send_ms)
        .object();
  };
}

Value ToValue(const Primary::Captured& captured) {
  return [captured](Napi::Env env) {
    return ResultObject(env)
        // kLater is direct, with nothing to send: the VM stays stopped.
        .Text("mode", captured.mode == Primary::Mode::kStaged ? "staged" : "direct")
        .Number("dirtyPages", captured.dirty_pages)
        .Number("prestagedPages", captured.prestaged_pages)
        .Number("supersededPages", captured.superseded_pages)
        .Number("aheadPages", captured.ahead_pages)
        .Number("heldBackPages", captured.held_back_pages)
        .Number("runs", captured.runs)
        .Number("laterPages", captured.later_pages)
        .Number("diskBytes", captured.disk_bytes)
        .Number("scanMs", captured.scan_ms)
        .Number("copyMs", captured.copy_ms)
        .object();
  };
}

Value ToValue(uint64_t epoch, const Primary::Sent& sent) {
  return [epoch, sent](Napi::Env env) {
    ResultObject object(env);
    return With(object, env, sent.disk_pages)
        .Number("epoch", epoch)
        .Number("pages", sent.counters.pages)
        .Number("zeroPages", sent.counters.zero_pages)
        .Number("bytes", sent.counters.bytes)
        .Number("deviceBytes", sent.device_bytes)
        .Number("deviceSentBytes", sent.device_sent_bytes)
        .Number("supersededBytes", sent.superseded_bytes)
        .Number("diskBytes", sent.disk_bytes)
        .Number("sendMs", sent.send_ms)
        .Number("ackMs", sent.ack_ms)
        .Number("syscalls", sent.counters.syscalls)
        .Number("cpuMs", sent.cpu_ms)
        .Number("copiedBytes", sent.counters.copied_bytes)
        .Number("referenceBytes", sent.counters.reference_bytes)
        .Number("completions", sent.counters.completions)
        .Number("previousApplyMs", sent.previous_apply_ms)
        .object();
  };
}

}  // namespace

Napi::Function PrimaryEngine::Define(Napi::Env env) {
  return DefineClass(env, "PrimaryEngine",
                     {
                         InstanceMethod("attach", &PrimaryEngine::Attach),
                         InstanceMethod("connect", &PrimaryEngine::Connect),
                         InstanceMethod("connectDisks", &PrimaryEngine::ConnectDisks),
                         InstanceMethod("syncDisks", &PrimaryEngine::SyncDisks),
                         InstanceMethod("diskProgress", &PrimaryEngine::DiskProgress),
                         InstanceMethod("setStopPending", &PrimaryEngine::SetStopPending),
                         InstanceMethod("diskStats", &PrimaryEngine::DiskStats),
                         InstanceMethod("indexDisks", &PrimaryEngine::IndexDisks),
                         InstanceMethod("awaitIndex", &PrimaryEngine::AwaitIndex),
                         InstanceMethod("baseRound", &PrimaryEngine::BaseRound),
                         InstanceMethod("prestage", &PrimaryEngine::Prestage),
                         InstanceMethod("findPopulated", &PrimaryEngine::FindPopulated),
                         InstanceMethod("capture", &PrimaryEngine::Capture),
                         InstanceMethod("send", &PrimaryEngine::Send),
                         InstanceMethod("servePages", &PrimaryEngine::ServePages),
                         InstanceMethod("serveProgress", &PrimaryEngine::ServeProgress),
                         InstanceMethod("abort", &PrimaryEngine::Abort),
                         InstanceMethod("disconnect", &PrimaryEngine::Disconnect),
                         InstanceMethod("detach", &PrimaryEngine::Detach),
                         InstanceMethod("close", &PrimaryEngine::Close),
                     });
}

PrimaryEngine::PrimaryEngine(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<PrimaryEngine>(info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  Primary::Options options;
  options.staging_bytes_max = fields.Whole("stagingBytesMax");
  options.copy_threads = CopyThreadsField(fields);
  options.strategy = ToStrategy(fields);
  if (fields.Has("disks")) options.disks = ToDisks(env, fields);
  if (!CheckWithRam(env, fields, options.ram)) return;
  const auto& bridge = Bridge::Of(env);
  core_ = std::make_shared<PrimaryCore>(bridge, options);
  bridge->Register(core_);
}

PrimaryEngine::~PrimaryEngine() {
  if (core_ == nullptr) return;
  core_->StopAndJoin();
  core_->bridge()->Unregister(core_.get());
}

Napi::Value PrimaryEngine::Attach(const Napi::CallbackInfo& info) {
  return core_->Submit(
      info.Env(), Value(),
      [core = core_.get()]() -> Result<js::Value> {
        auto attached = core->primary().Attach();
        if (!attached.ok()) return attached.error();
        return ToValue(attached.value());
      },
      [core = core_.get()] { core->primary().Prepare(); });
}

Napi::Value PrimaryEngine::Connect(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  Primary::Peer peer = ToPeer(fields);
  if (fields.Has("streams")) {
    const uint64_t streams = fields.Whole("streams");
    if (streams < 1 || streams > kStreamsMax) fields.Wrong("streams", 0);
    peer.streams = static_cast<unsigned>(streams);
  }
  if (fields.Has("verify")) peer.verify = fields.Flag("verify");
  if (!fields.Check()) return {};
  return core_->Submit(info.Env(), Value(),
                       [core = core_.get(), link = core_->link(), peer]() -> Result<js::Value> {
                         if (link->cancelled()) return Cut();
                         return FromStatus(core->primary().Connect(peer, link));
                       });
}

Napi::Value PrimaryEngine::ConnectDisks(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(),
                       [core = core_.get(), link = core_->link()]() -> Result<js::Value> {
                         if (link->cancelled()) return Cut();
                         auto differences = core->primary().ConnectDisks();
                         if (!differences.ok()) return differences.error();
                         return ToValue(std::move(differences).value());
                       });
}

Napi::Value PrimaryEngine::SyncDisks(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const std::vector<Shipper::Plan> plans = ToPlans(info.Env(), fields);
  const SyncId sync_id = ToSyncId(fields, "syncId");
  if (!fields.Check()) return {};
  return core_->Submit(
      info.Env(), Value(),
      [core = core_.get(), link = core_->link(), plans, sync_id]() -> Result<js::Value> {
        if (link->cancelled()) return Cut();
        auto synced = core->primary().SyncDisks(plans, sync_id);
        if (!synced.ok()) return synced.error();
        return ToValue(synced.value());
      });
}

Napi::Value PrimaryEngine::DiskProgress(const Napi::CallbackInfo& info) {
  const auto disks = core_->shipped();
  if (disks == nullptr || !disks->copying) return info.Env().Undefined();
  return ResultObject(info.Env())
      .Number("doneBytes", disks->done_bytes.load())
      .Number("totalBytes", disks->total_bytes.load())
      .object();
}

// Here and now: QEMU is told to stop right after it.
void PrimaryEngine::SetStopPending(const Napi::CallbackInfo& info) {
  if (!info[0].IsBoolean()) {
    Napi::TypeError::New(info.Env(), "holdfast: bad or missing value: on")
        .ThrowAsJavaScriptException();
    return;
  }
  const auto disks = core_->shipped();
  if (disks != nullptr) disks->SetStopPending(info[0].As<Napi::Boolean>().Value());
}

Napi::Value PrimaryEngine::DiskStats(const Napi::CallbackInfo& info) {
  const auto disks = core_->shipped();
  return disks == nullptr ? Napi::Array::New(info.Env()) : ToArray(info.Env(), *disks);
}

Napi::Value PrimaryEngine::IndexDisks(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const std::vector<DiskIndex::Disk> disks = ToIndexedDisks(info.Env(), fields);
  const uint64_t table_bytes_max = fields.Whole("tableBytesMax");
  if (!fields.Check()) return {};
  return core_->Submit(
      info.Env(), Value(),
      [core = core_.get(), link = core_->link(), disks, table_bytes_max]() -> Result<js::Value> {
        if (link->cancelled()) return Cut();
        return FromStatus(core->primary().IndexDisks(disks, table_bytes_max));
      });
}

Napi::Value PrimaryEngine::AwaitIndex(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const auto timeout_ms =
      static_cast<int>(std::min<uint64_t>(fields.Whole("timeoutMs"), 86'400'000));
  if (!fields.Check()) return {};
  return core_->Submit(
      info.Env(), Value(),
      [core = core_.get(), link = core_->link(), timeout_ms]() -> Result<js::Value> {
        if (link->cancelled()) return Cut();
        auto progress = core->primary().AwaitIndex(timeout_ms, *link);
        if (!progress.ok()) return progress.error();
        return ToValue(progress.value());
      });
}

Napi::Value PrimaryEngine::BaseRound(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const bool first = fields.Flag("first");
  std::optional<Primary::StateFile> prefix;
  if (fields.Has("prefix")) {
    prefix = ToStateFile(info.Env(), fields.Get("prefix"), fields, "prefix");
  }
  if (!fields.Check()) return {};
  return core_->Submit(info.Env(), Value(),
                       [core = core_.get(), link = core_->link(), first,
                        prefix]() -> Result<js::Value> {
                         if (link->cancelled()) return Cut();
                         auto round = core->primary().BaseRound(first, *link, prefix);
                         if (!round.ok()) return round.error();
                         return ToValue(round.value());
                       });
}

Napi::Value PrimaryEngine::Prestage(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  Primary::Slice slice;
  slice.epoch = EpochField(fields);
  slice.send = fields.Flag("send");
  std::optional<Strategy> chosen;
  if (fields.Has("strategy")) chosen = ToStrategy(fields);
  if (fields.Has("bytesMax")) slice.bytes_max = fields.Whole("bytesMax");
  if (!fields.Check()) return {};
  // What an unacknowledged epoch staged must not be overwritten.
  if (core_->epoch_open) {
    return Rejected(info.Env(), Error::Of(ErrorCode::kLimit, "an epoch is not acknowledged yet"));
  }
  return core_->Submit(info.Env(), Value(),
                       [core = core_.get(), link = core_->link(), slice,
                        chosen]() mutable -> Result<js::Value> {
                         if (slice.send && link->cancelled()) return Cut();
                         slice.strategy = chosen.value_or(core->primary().base_strategy());
                         auto prestaged = core->primary().Prestage(slice);
                         if (!prestaged.ok()) return prestaged.error();
                         return ToValue(prestaged.value());
                       });
}

Napi::Value PrimaryEngine::FindPopulated(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    return FromStatus(core->primary().FindPopulated());
  });
}

Napi::Value PrimaryEngine::Capture(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const uint64_t epoch = EpochField(fields);
  const std::string name = fields.Text("mode");
  if (name != "staged" && name != "direct" && name != "later") fields.Wrong("mode", 0);
  if (!fields.Check()) return {};
  const auto mode = name == "staged"   ? Primary::Mode::kStaged
                    : name == "direct" ? Primary::Mode::kDirect
                                       : Primary::Mode::kLater;
  if (core_->epoch_open.exchange(true)) {
    return Rejected(info.Env(), Error::Of(ErrorCode::kLimit, "an epoch is not acknowledged yet"));
  }
  return core_->Submit(info.Env(), Value(),
                       [core = core_.get(), epoch, mode]() -> Result<js::Value> {
                         auto captured = core->primary().Capture(epoch, mode);
                         core->epoch_open = core->primary().epoch_open();
                         if (!captured.ok()) return captured.error();
                         return ToValue(captured.value());
                       });
}

Napi::Value PrimaryEngine::Send(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  const uint64_t epoch = fields.Whole("epoch");
  const auto device = ToStateFile(env, fields.Get("device"), fields, "device");
  std::optional<Primary::StateFile> prefix;
  if (fields.Has("prefix")) prefix = ToStateFile(env, fields.Get("prefix"), fields, "prefix");
  std::optional<Strategy> chosen;
  if (fields.Has("strategy")) chosen = ToStrategy(fields);
  if (!fields.Check()) return {};
  return core_->Submit(
      env, Value(),
      [core = core_.get(), link = core_->link(), epoch, chosen, device, prefix]() -> Result<js::Value> {
        if (link->cancelled()) {
          core->primary().Abort(epoch);
          core->epoch_open = core->primary().epoch_open();
          return Cut();
        }
        const Strategy strategy = chosen.value_or(core->primary().base_strategy());
        auto sent = core->primary().Send(epoch, strategy, device, prefix);
        core->epoch_open = core->primary().epoch_open();
        if (!sent.ok()) return sent.error();
        return ToValue(epoch, sent.value());
      },
      [core = core_.get()] { core->primary().Prepare(); });
}

Napi::Value PrimaryEngine::ServePages(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const Primary::Peer peer = ToPeer(fields);
  if (!fields.Check()) return {};
  return core_->Submit(info.Env(), Value(),
                       [core = core_.get(), link = core_->link(), peer]() -> Result<js::Value> {
                         if (link->cancelled()) return Cut();
                         auto have = core->primary().ServePages(peer, *link);
                         if (!have.ok()) return have.error();
                         return js::Value([cost = have.value()](Napi::Env env) -> Napi::Value {
                           return ResultObject(env)
                               .Number("faults", cost.faults)
                               .Number("faultP50Us", cost.p50_us)
                               .Number("faultP99Us", cost.p99_us)
                               .Number("faultMaxUs", cost.max_us)
                               .object();
                         });
                       });
}

Napi::Value PrimaryEngine::ServeProgress(const Napi::CallbackInfo& info) {
  const auto& progress = core_->serve_progress();
  return ResultObject(info.Env())
      .Number("pages", progress.pages.load())
      .Number("pagesLeft", progress.pages_left.load())
      .Number("demandedPages", progress.demanded_pages.load())
      .Number("backgroundPages", progress.background_pages.load())
      .Number("zeroPages", progress.zero_pages.load())
      .Number("bytes", progress.bytes.load())
      .Number("connections", progress.connections.load())
      .object();
}

Napi::Value PrimaryEngine::Abort(const Napi::CallbackInfo& info) {
  if (!info[0].IsNumber()) {
    Napi::TypeError::New(info.Env(), "holdfast: bad or missing value: epoch")
        .ThrowAsJavaScriptException();
    return {};
  }
  const auto epoch = static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value());
  return core_->Submit(info.Env(), Value(), [core = core_.get(), epoch]() -> Result<js::Value> {
    core->primary().Abort(epoch);
    core->epoch_open = core->primary().epoch_open();
    return Undefined();
  });
}

Napi::Value PrimaryEngine::Disconnect(const Napi::CallbackInfo& info) {
  core_->CutLink();
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    core->primary().Disconnect();
    return Undefined();
  });
}

Napi::Value PrimaryEngine::Detach(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    const Status detached = core->primary().Detach();
    core->epoch_open = core->primary().epoch_open();
    return FromStatus(detached);
  });
}

Napi::Value PrimaryEngine::Close(const Napi::CallbackInfo& info) {
  return core_->Close(info.Env(), Value());
}

}  // namespace holdfast::js
