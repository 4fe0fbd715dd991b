#include "js/sched_trace.h"

#include <mutex>
#include <utility>
#include <vector>

#include "js/background.h"
#include "js/bridge.h"
#include "js/fields.h"
#include "js/result_object.h"
#include "js/trace_fields.h"
#include "trace/sched_recorder.h"
#include "trace/tracefs.h"

namespace holdfast::js {

// Opening and closing wait for the kernel (RCU) for milliseconds per event:
// both happen on threads of their own.
class SchedTraceCore {
 public:
  explicit SchedTraceCore(SchedRecorder::Options options) : options_(std::move(options)) {}

  Status Start() {
    auto recorder = SchedRecorder::Start(options_);
    if (!recorder.ok()) return recorder.error();
    const std::lock_guard lock(mutex_);
    recorder_ = std::move(recorder).value();
    return {};
  }

  // What was recorded last stays, to be taken.
  void Close() {
    const std::lock_guard lock(mutex_);
    if (recorder_ == nullptr) return;
    recorder_->Stop();
    left_ = recorder_->Take();
    last_stats_ = recorder_->Stats();
    recorder_.reset();
  }

  std::vector<SchedEvent> Take() {
    const std::lock_guard lock(mutex_);
    return recorder_ == nullptr ? std::exchange(left_, {}) : recorder_->Take();
  }

  SchedRecorderStats Stats() const {
    const std::lock_guard lock(mutex_);
    return recorder_ == nullptr ? last_stats_ : recorder_->Stats();
  }

 private:
  const SchedRecorder::Options options_;
  mutable std::mutex mutex_;  // guards the rest
  std::unique_ptr<SchedRecorder> recorder_;
  std::vector<SchedEvent> left_;
  SchedRecorderStats last_stats_;
};

namespace {

uint32_t Offset(Fields& fields, const char* name) {
  const uint64_t value = fields.Whole(name);
  if (value > UINT16_MAX) fields.Wrong(name, 0);
  return static_cast<uint32_t>(value);
}

Tracepoints TracepointsOf(Napi::Env env, Fields& options) {
  Fields all(env, options.Get("tracepoints"));
  Fields on_switch(env, all.Get("switch"));
  Fields on_migrate(env, all.Get("migrate"));
  Fields on_wakeup(env, all.Get("wakeup"));
  const Tracepoints found{
      .on_switch = {Offset(on_switch, "id"), Offset(on_switch, "prevPid"),
                    Offset(on_switch, "prevState"), Offset(on_switch, "nextPid")},
      .on_migrate = {Offset(on_migrate, "id"), Offset(on_migrate, "pid"),
                     Offset(on_migrate, "origCpu"), Offset(on_migrate, "destCpu")},
      .on_wakeup = {Offset(on_wakeup, "id"), Offset(on_wakeup, "pid"),
                    Offset(on_wakeup, "targetCpu")},
  };
  if (!on_switch.Check() || !on_migrate.Check() || !on_wakeup.Check()) options.Wrong("tracepoints", 0);
  return found;
}

}  // namespace

// A few system calls that wait for nothing.
Napi::Value ReadTracefsSync(const Napi::CallbackInfo& info) {
  if (!info[0].IsString()) {
    Napi::TypeError::New(info.Env(), "holdfast: bad or missing value: path").ThrowAsJavaScriptException();
    return {};
  }
  const auto text = ReadTracefs(info[0].As<Napi::String>().Utf8Value());
  if (!text.ok()) {
    ToJs(info.Env(), text.error()).ThrowAsJavaScriptException();
    return {};
  }
  return Napi::String::New(info.Env(), text.value());
}

Napi::Function SchedTraceObject::Define(Napi::Env env) {
  return DefineClass(env, "SchedTrace",
                     {
                         InstanceMethod("start", &SchedTraceObject::Start),
                         InstanceMethod("take", &SchedTraceObject::Take),
                         InstanceMethod("stats", &SchedTraceObject::Stats),
                         InstanceMethod("close", &SchedTraceObject::Close),
                     });
}

SchedTraceObject::SchedTraceObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<SchedTraceObject>(info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  SchedRecorder::Options options;
  options.threads = WholeNumbers<pid_t>(fields, "threads");
  options.cores = WholeNumbers<uint32_t>(fields, "cores");
  options.tracepoints = TracepointsOf(env, fields);
  options.ring_bytes = fields.Whole("ringBytes");
  options.events_max = fields.Whole("eventsMax");
  options.keep_latest = fields.Flag("keepLatest");
  const bool power_of_two = (options.ring_bytes & (options.ring_bytes - 1)) == 0;
  if (options.ring_bytes < 4096 || options.ring_bytes > 1 << 30 || !power_of_two) {
    fields.Wrong("ringBytes", 0);
  }
  if (options.events_max == 0) fields.Wrong("eventsMax", 0);
  if (fields.Check()) core_ = std::make_shared<SchedTraceCore>(std::move(options));
}

Napi::Value SchedTraceObject::Start(const Napi::CallbackInfo& info) {
  return RunInBackground(info.Env(), [core = core_](const CancelSignal&) -> Result<js::Value> {
    return FromStatus(core->Start());
  });
}

Napi::Value SchedTraceObject::Take(const Napi::CallbackInfo& info) {
  return BytesOf(info.Env(), core_->Take());
}

Napi::Value SchedTraceObject::Stats(const Napi::CallbackInfo& info) {
  const SchedRecorderStats stats = core_->Stats();
  return ResultObject(info.Env())
      .Number("events", stats.events)
      .Number("lost", stats.lost)
      .Number("discarded", stats.discarded)
      .Number("wakeups", stats.wakeups)
      .Flag("full", stats.full)
      .object();
}

Napi::Value SchedTraceObject::Close(const Napi::CallbackInfo& info) {
  return RunInBackground(info.Env(), [core = core_](const CancelSignal&) -> Result<js::Value> {
    core->Close();
    return Undefined();
  });
}

}  // namespace holdfast::js
