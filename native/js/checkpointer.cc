#include "js/checkpointer.h"

#include <string>
#include <utility>
#include <vector>

#include "checkpoint/checkpointer.h"
#include "checkpoint/copy_sparse.h"
#include "checkpoint/layer_chain.h"
#include "js/background.h"
#include "js/bridge.h"
#include "js/core.h"
#include "js/engine_fields.h"
#include "js/fields.h"
#include "js/layer_fields.h"
#include "js/result_object.h"

namespace holdfast::js {

class CheckpointerCore : public Core {
 public:
  CheckpointerCore(std::shared_ptr<Bridge> bridge, const Checkpointer::Options& options)
      : Core(std::move(bridge), "hf-checkpoint"),
        checkpointer_(std::make_unique<Checkpointer>(options)) {}
  // The thread must be gone before the members it uses are.
  ~CheckpointerCore() override { StopAndJoin(); }

  // Data-plane thread only.
  Checkpointer& checkpointer() { return *checkpointer_; }

  // The rest: JavaScript thread only.

  // Of the checkpoint that is being written.
  std::shared_ptr<CancelSignal> writes() const { return writes_; }
  void CancelWrites() {
    if (closing()) return;
    writes_->Cancel();
    writes_ = std::make_shared<CancelSignal>();
  }

 private:
  void Cancel() override {
    if (writes_ != nullptr) writes_->Cancel();
  }
  void ReleaseResources() override { checkpointer_.reset(); }
  void Ended() override { writes_.reset(); }

  std::shared_ptr<CancelSignal> writes_ = std::make_shared<CancelSignal>();
  std::unique_ptr<Checkpointer> checkpointer_;
};

Napi::Function CheckpointerObject::Define(Napi::Env env) {
  return DefineClass(env, "Checkpointer",
                     {
                         InstanceMethod("attach", &CheckpointerObject::Attach),
                         InstanceMethod("begin", &CheckpointerObject::Begin),
                         InstanceMethod("round", &CheckpointerObject::Round),
                         InstanceMethod("capture", &CheckpointerObject::Capture),
                         InstanceMethod("finish", &CheckpointerObject::Finish),
                         InstanceMethod("commit", &CheckpointerObject::Commit),
                         InstanceMethod("giveUp", &CheckpointerObject::GiveUp),
                         InstanceMethod("cancelWrites", &CheckpointerObject::CancelWrites),
                         InstanceMethod("detach", &CheckpointerObject::Detach),
                         InstanceMethod("close", &CheckpointerObject::Close),
                     });
}

CheckpointerObject::CheckpointerObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<CheckpointerObject>(info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  Checkpointer::Options options;
  options.staging_bytes_max = fields.Whole("stagingBytesMax");
  options.copy_threads = CopyThreadsField(fields);
  if (!CheckWithRam(env, fields, options.ram)) return;
  const auto& bridge = Bridge::Of(env);
  core_ = std::make_shared<CheckpointerCore>(bridge, options);
  bridge->Register(core_);
}

CheckpointerObject::~CheckpointerObject() {
  if (core_ == nullptr) return;
  core_->StopAndJoin();
  core_->bridge()->Unregister(core_.get());
}

Napi::Value CheckpointerObject::Attach(const Napi::CallbackInfo& info) {
  return core_->Submit(
      info.Env(), Value(),
      [core = core_.get()]() -> Result<js::Value> {
        auto attached = core->checkpointer().Attach();
        if (!attached.ok()) return attached.error();
        return js::Value([attached = attached.value()](Napi::Env env) -> Napi::Value {
          return ResultObject(env)
              .Flag("adopted", attached.adopted)
              .Number("injectMs", attached.inject_ms)
              .object();
        });
      },
      [core = core_.get()] { core->checkpointer().Prepare(); });
}

Napi::Value CheckpointerObject::Begin(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const std::string path = fields.Text("ramPath");
  const bool full = fields.Flag("full");
  if (!fields.Check()) return {};
  return core_->Submit(info.Env(), Value(), [core = core_.get(), path, full] {
    return FromStatus(core->checkpointer().Begin(path, full));
  });
}

Napi::Value CheckpointerObject::Round(const Napi::CallbackInfo& info) {
  return core_->Submit(
      info.Env(), Value(), [core = core_.get(), writes = core_->writes()]() -> Result<js::Value> {
        auto round = core->checkpointer().WriteRound(*writes);
        if (!round.ok()) return round.error();
        return js::Value([round = round.value()](Napi::Env env) -> Napi::Value {
          return ResultObject(env)
              .Number("pages", round.content_pages)
              .Number("zeroPages", round.zero_pages)
              .Number("dirtyPages", round.dirty_pages)
              .Number("scanMs", round.scan_ms)
              .Number("writeMs", round.write_ms)
              .object();
        });
      });
}

Napi::Value CheckpointerObject::Capture(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    auto captured = core->checkpointer().Capture();
    if (!captured.ok()) return captured.error();
    return js::Value([captured = captured.value()](Napi::Env env) -> Napi::Value {
      return ResultObject(env)
          .Flag("staged", captured.staged)
          .Number("dirtyPages", captured.dirty_pages)
          .Number("scanMs", captured.scan_ms)
          .Number("copyMs", captured.copy_ms)
          .object();
    });
  });
}

Napi::Value CheckpointerObject::Finish(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const std::string index = fields.Text("indexPath");
  if (!fields.Check()) return {};
  return core_->Submit(
      info.Env(), Value(),
      [core = core_.get(), writes = core_->writes(), index]() -> Result<js::Value> {
        auto finished = core->checkpointer().Finish(index, *writes);
        if (!finished.ok()) return finished.error();
        return js::Value([finished = finished.value()](Napi::Env env) -> Napi::Value {
          return ResultObject(env)
              .Number("pages", finished.content_pages)
              .Number("zeroPages", finished.zero_pages)
              .Text("digest", ToDigestText(finished.trailer))
              .Number("writeMs", finished.write_ms)
              .object();
        });
      });
}

Napi::Value CheckpointerObject::Commit(const Napi::CallbackInfo& info) {
  return core_->Submit(
      info.Env(), Value(),
      [core = core_.get()]() -> Result<js::Value> {
        core->checkpointer().Commit();
        return Undefined();
      },
      [core = core_.get()] { core->checkpointer().Prepare(); });
}

Napi::Value CheckpointerObject::GiveUp(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    core->checkpointer().GiveUp();
    return Undefined();
  });
}

void CheckpointerObject::CancelWrites(const Napi::CallbackInfo&) { core_->CancelWrites(); }

Napi::Value CheckpointerObject::Detach(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()] {
    return FromStatus(core->checkpointer().Detach());
  });
}

Napi::Value CheckpointerObject::Close(const Napi::CallbackInfo& info) {
  return core_->Close(info.Env(), Value());
}

Napi::Value VerifyLayersAsync(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const std::vector<LayerFiles> layers = ToLayers(info.Env(), fields);
  const uint64_t limit = fields.Whole("limit");
  if (!fields.Check()) return {};
  return RunInBackground(
      info.Env(), [layers, limit](const CancelSignal& cancel) -> Result<Value> {
        auto chain = LayerChain::Open(layers);
        if (!chain.ok()) return chain.error();
        auto found = chain.value().Verify(limit, cancel);
        if (!found.ok()) return found.error();
        return Value([found = std::move(found).value()](Napi::Env env) -> Napi::Value {
          auto list = Napi::Array::New(env, found.size());
          for (uint32_t i = 0; i < found.size(); ++i) {
            list.Set(i, ResultObject(env)
                            .Number("layer", uint64_t{found[i].layer})
                            .Number("page", found[i].page)
                            .object());
          }
          return list;
        });
      });
}

Napi::Value AssembleRamAsync(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const std::vector<LayerFiles> layers = ToLayers(info.Env(), fields);
  const std::string path = fields.Text("path");
  if (!fields.Check()) return {};
  return RunInBackground(info.Env(),
                         [layers, path](const CancelSignal& cancel) -> Result<Value> {
                           auto chain = LayerChain::Open(layers);
                           if (!chain.ok()) return chain.error();
                           return FromStatus(chain.value().Assemble(path, cancel));
                         });
}

Napi::Value MergeLayersAsync(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  const LayerFiles lower = ToLayer(env, fields.Get("lower"), fields, "lower");
  const LayerFiles upper = ToLayer(env, fields.Get("upper"), fields, "upper");
  const std::string index = fields.Text("indexPath");
  if (!fields.Check()) return {};
  return RunInBackground(
      env, [lower, upper, index](const CancelSignal& cancel) -> Result<Value> {
        auto merged = MergeInto(lower, upper, index, cancel);
        if (!merged.ok()) return merged.error();
        return Value([merged = merged.value()](Napi::Env result_env) -> Napi::Value {
          return ResultObject(result_env)
              .Number("mergedPages", merged.merged_pages)
              .Number("pages", merged.content_pages)
              .Text("digest", ToDigestText(merged.trailer))
              .object();
        });
      });
}

Napi::Value CopySparseAsync(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const std::string from = fields.Text("from");
  const std::string to = fields.Text("to");
  if (!fields.Check()) return {};
  return RunInBackground(info.Env(), [from, to](const CancelSignal& cancel) -> Result<Value> {
    auto copied = CopySparse(from, to, cancel);
    if (!copied.ok()) return copied.error();
    return Value([copied = copied.value()](Napi::Env env) -> Napi::Value {
      return ResultObject(env)
          .Number("bytes", copied.bytes)
          .Number("dataBytes", copied.data_bytes)
          .Flag("shared", copied.shared)
          .object();
    });
  });
}

}  // namespace holdfast::js
