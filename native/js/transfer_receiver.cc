#include "js/transfer_receiver.h"

#include <string>
#include <utility>

#include "js/bridge.h"
#include "js/core.h"
#include "js/event_channel.h"
#include "js/fields.h"
#include "js/result_object.h"
#include "js/transfer_fields.h"
#include "receive/receiver.h"

namespace holdfast::js {

class TransferReceiverCore : public Core {
 public:
  TransferReceiverCore(std::shared_ptr<Bridge> bridge, std::shared_ptr<EventChannel> channel)
      : Core(std::move(bridge), "hf-transfer-in"), channel_(std::move(channel)) {}
  ~TransferReceiverCore() override { StopAndJoin(); }

  // This core's thread.
  Status Listen(const std::string& host, uint16_t port) {
    return Keep(Receiver::Listen(host, port, Sink()));
  }
  Status Create() { return Keep(Receiver::Create(Sink())); }

  // Any thread, from when open() has settled until the core closes.
  Receiver& receiver() { return *receiver_; }
  EventChannel& channel() { return *channel_; }

 private:
  Receiver::EventSink Sink() {
    return [channel = channel_](const ReceiverEvent& event) { channel->Push(event); };
  }
  Status Keep(Result<std::unique_ptr<Receiver>> receiver) {
    if (!receiver.ok()) return receiver.error();
    receiver_ = std::move(receiver).value();
    return {};
  }

  // Receiver's calls are bounded in time by themselves.
  void Cancel() override {}
  void ReleaseResources() override { receiver_.reset(); }
  void Ended() override {}

  const std::shared_ptr<EventChannel> channel_;
  std::unique_ptr<Receiver> receiver_;  // last: its threads push into the channel
};

Napi::Function TransferReceiver::Define(Napi::Env env) {
  return DefineClass(env, "TransferReceiver",
                     {
                         InstanceMethod("open", &TransferReceiver::Open),
                         InstanceMethod("allow", &TransferReceiver::Allow),
                         InstanceMethod("close", &TransferReceiver::Close),
                     });
}

TransferReceiver::TransferReceiver(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<TransferReceiver>(info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  const Napi::Function listener = fields.Callback("onEvent");
  if (!fields.Check()) return;
  const auto& bridge = Bridge::Of(env);
  core_ = std::make_shared<TransferReceiverCore>(bridge,
                                                 std::make_shared<EventChannel>(bridge, listener));
  bridge->Register(core_);
}

TransferReceiver::~TransferReceiver() {
  if (core_ == nullptr) return;
  core_->StopAndJoin();
  core_->channel().Close();
  core_->bridge()->Unregister(core_.get());
}

Napi::Value TransferReceiver::Open(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  const int socket_fd = DescriptorField(fields, "socketFd");
  std::string host;
  uint16_t port = 0;
  if (socket_fd < 0) {
    host = fields.Text("host");
    port = PortField(fields, "port");
  }
  Receiver::Session session;
  session.token = fields.Token("token");
  session.ram_path = fields.Text("path");
  session.ram_bytes = fields.Whole("regionBytes");
  session.page_size = static_cast<uint32_t>(fields.Whole("pageSize"));
  session.verify = fields.Flag("verify");
  session.epoch_bytes_max = session.ram_bytes;
  session.device_bytes_max = fields.Whole("metadataBytesMax");
  session.deliver_state = true;
  session.gated = true;
  const uint64_t ahead_max = fields.Whole("aheadMax");
  if (!fields.Check()) return {};
  // Jobs are copyable functions, descriptors are not. Taken over also if this fails.
  const auto socket = std::make_shared<Descriptor>(socket_fd);
  return core_->Submit(
      env, Value(),
      [this, core = core_.get(), host, port, socket, session, ahead_max]() -> Result<js::Value> {
        if (socket->valid()) HF_TRY(CheckStreamSocket(socket->get(), "receiver"));
        HF_TRY(socket->valid() ? core->Create() : core->Listen(host, port));
        HF_TRY(core->receiver().OpenSession(session));
        core->receiver().AllowApplies(ahead_max);
        if (socket->valid()) core->receiver().Adopt(std::move(*socket));
        return js::Value([this, port = core->receiver().port()](Napi::Env env) -> Napi::Value {
          HoldWhileOpen(env);
          return Napi::Number::New(env, port);
        });
      });
}

Napi::Value TransferReceiver::Allow(const Napi::CallbackInfo& info) {
  if (!core_->closing()) core_->receiver().AllowApplies(1);
  return info.Env().Undefined();
}

Napi::Value TransferReceiver::Close(const Napi::CallbackInfo& info) {
  // The promise that is returned holds both until all is closed.
  const Napi::Value closed = core_->Close(info.Env(), Value());
  core_->channel().Close();
  Release(info.Env());
  return closed;
}

void TransferReceiver::HoldWhileOpen(Napi::Env env) {
  if (held_ || core_->closing()) return;
  held_ = true;
  Ref();
  core_->bridge()->HoldLoop(env);
}

void TransferReceiver::Release(Napi::Env env) {
  if (!std::exchange(held_, false)) return;
  core_->bridge()->ReleaseLoop(env);
  Unref();
}

}  // namespace holdfast::js
