#include "js/transfer_sender.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "js/bridge.h"
#include "js/core.h"
#include "js/fields.h"
#include "js/result_object.h"
#include "js/transfer_engine.h"
#include "js/transfer_fields.h"
#include "send/strategy.h"

namespace holdfast::js {

class TransferSenderCore : public Core {
 public:
  explicit TransferSenderCore(std::shared_ptr<Bridge> bridge)
      : Core(std::move(bridge), "hf-transfer"),
        cancel_(std::make_unique<CancelSignal>()),
        engine_(std::make_unique<TransferEngine>(*cancel_)) {}
  // The thread must be gone before the members it uses are.
  ~TransferSenderCore() override { StopAndJoin(); }

  // This core's thread only.
  TransferEngine& engine() { return *engine_; }

 private:
  void Cancel() override {
    if (cancel_ != nullptr) cancel_->Cancel();
  }
  void ReleaseResources() override { engine_.reset(); }
  void Ended() override { cancel_.reset(); }

  std::unique_ptr<CancelSignal> cancel_;
  std::unique_ptr<TransferEngine> engine_;
};

namespace {

// Pairs of first page and number of pages.
std::vector<PageRun> RunsField(Fields& fields, const char* name) {
  std::vector<PageRun> runs;
  const Napi::Value value = fields.Get(name);
  const bool words = !value.IsEmpty() && value.IsTypedArray() &&
                     value.As<Napi::TypedArray>().TypedArrayType() == napi_uint32_array;
  if (!words || value.As<Napi::TypedArray>().ElementLength() % 2 != 0) {
    fields.Wrong(name, 0);
    return runs;
  }
  const auto pairs = value.As<Napi::Uint32Array>();
  runs.reserve(pairs.ElementLength() / 2);
  for (size_t i = 0; i < pairs.ElementLength(); i += 2) {
    const uint32_t first_page = pairs[i];
    runs.push_back({first_page, first_page, pairs[i + 1]});
  }
  return runs;
}

std::vector<std::byte> BytesField(Fields& fields, const char* name) {
  const Napi::Value value = fields.Get(name);
  if (value.IsEmpty() || !value.IsTypedArray() ||
      value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    fields.Wrong(name, 0);
    return {};
  }
  const auto bytes = value.As<Napi::Uint8Array>();
  const auto* data = reinterpret_cast<const std::byte*>(bytes.Data());
  return {data, data + bytes.ByteLength()};
}

Value ToValue(const TransferEngine::Sent& sent) {
  return [sent](Napi::Env env) {
    return ResultObject(env)
        .Number("pages", sent.counters.pages)
        .Number("zeroPages", sent.counters.zero_pages)
        .Number("bytes", sent.counters.bytes)
        .Number("sendMs", sent.send_ms)
        .Number("ackMs", sent.ack_ms)
        .Number("cpuMs", sent.cpu_ms)
        .Number("syscalls", sent.counters.syscalls)
        .Number("copiedBytes", sent.counters.copied_bytes)
        .Number("referenceBytes", sent.counters.reference_bytes)
        .object();
  };
}

}  // namespace

Napi::Function TransferSender::Define(Napi::Env env) {
  return DefineClass(env, "TransferSender",
                     {
                         InstanceMethod("open", &TransferSender::Open),
                         InstanceMethod("stage", &TransferSender::Stage),
                         InstanceMethod("send", &TransferSender::Send),
                         InstanceMethod("close", &TransferSender::Close),
                     });
}

TransferSender::TransferSender(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<TransferSender>(info) {
  const auto& bridge = Bridge::Of(info.Env());
  core_ = std::make_shared<TransferSenderCore>(bridge);
  bridge->Register(core_);
}

TransferSender::~TransferSender() {
  if (core_ == nullptr) return;
  core_->StopAndJoin();
  core_->bridge()->Unregister(core_.get());
}

Napi::Value TransferSender::Open(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  // Jobs are copyable functions, descriptors are not.
  const auto region = std::make_shared<TransferEngine::Region>();
  const auto peer = std::make_shared<TransferEngine::Peer>();
  const int file_fd = DescriptorField(fields, "fileFd");
  if (file_fd < 0) region->path = fields.Text("path");
  region->file_offset = fields.Whole("fileOffset");
  region->bytes = fields.Whole("regionBytes");
  region->page_size = static_cast<uint32_t>(fields.Whole("pageSize"));
  region->staging_bytes_max = fields.Whole("stagingBytesMax");
  const int socket_fd = DescriptorField(fields, "socketFd");
  if (socket_fd < 0) {
    peer->host = fields.Text("host");
    peer->port = PortField(fields, "port");
  }
  peer->token = fields.Token("token");
  peer->streams = static_cast<unsigned>(fields.Whole("streams"));
  peer->verify = fields.Flag("verify");
  peer->timeout_ms = static_cast<int>(std::min<uint64_t>(fields.Whole("timeoutMs"), 3'600'000));
  if (!fields.Check()) return {};
  // The connection is taken over, as lib/transfer promises: also if this fails.
  peer->socket = Descriptor(socket_fd);
  if (file_fd >= 0) {
    auto file = Duplicate(file_fd, "region");
    if (!file.ok()) return Rejected(env, file.error());
    region->file = std::move(file).value();
  }
  return core_->Submit(env, Value(), [core = core_.get(), region, peer]() -> Result<js::Value> {
    if (peer->socket.valid()) HF_TRY(CheckStreamSocket(peer->socket.get(), "sender"));
    HF_TRY(core->engine().Open(std::move(*region)));
    HF_TRY(core->engine().Connect(std::move(*peer)));
    return Undefined();
  });
}

Napi::Value TransferSender::Stage(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  auto runs = RunsField(fields, "runs");
  if (!fields.Check()) return {};
  return core_->Submit(info.Env(), Value(),
                       [core = core_.get(), runs = std::move(runs)]() -> Result<js::Value> {
                         const auto stage_ms = core->engine().Stage(runs);
                         if (!stage_ms.ok()) return stage_ms.error();
                         return js::Value([ms = stage_ms.value()](Napi::Env env) -> Napi::Value {
                           return Napi::Number::New(env, ms);
                         });
                       });
}

Napi::Value TransferSender::Send(const Napi::CallbackInfo& info) {
  Fields fields(info.Env(), info[0]);
  const uint64_t id = fields.Whole("id");
  const bool staged = fields.Flag("staged");
  auto runs = staged ? std::vector<PageRun>() : RunsField(fields, "runs");
  const auto strategy = StrategyNamed(fields.Text("strategy"));
  if (!strategy) fields.Wrong("strategy", 0);
  auto metadata = BytesField(fields, "metadata");
  if (!fields.Check()) return {};
  return core_->Submit(
      info.Env(), Value(),
      [core = core_.get(), id, staged, runs = std::move(runs), strategy = *strategy,
       metadata = std::move(metadata)]() -> Result<js::Value> {
        auto sent = core->engine().Send(id, runs, staged, strategy, metadata);
        if (!sent.ok()) return sent.error();
        return ToValue(sent.value());
      });
}

Napi::Value TransferSender::Close(const Napi::CallbackInfo& info) {
  return core_->Close(info.Env(), Value());
}

}  // namespace holdfast::js
