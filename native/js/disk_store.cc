#include "js/disk_store.h"

#include <string>
#include <utility>
#include <vector>

#include "js/bridge.h"
#include "js/core.h"
#include "js/event_queue.h"
#include "js/fields.h"
#include "js/result_object.h"

namespace holdfast::js {
namespace {

constexpr napi_type_tag kTag = {0x64697673'746f7265, 0x686f6c64'66617374};

Napi::Object ToObject(Napi::Env env, const DiskStore::Event& event) {
  ResultObject object(env);
  switch (event.type) {
    case DiskStore::Event::Type::kApplied:
      return object.Text("type", "applied").Number("epoch", event.epoch).object();
    case DiskStore::Event::Type::kDurable:
      return object.Text("type", "durable").Number("epoch", event.epoch).object();
    case DiskStore::Event::Type::kMerged:
      return object.Text("type", "merged").Number("epoch", event.epoch).object();
    case DiskStore::Event::Type::kFault: {
      const Napi::Object error = ToJs(env, event.error).Value();
      return object.Text("type", "fault")
          .Text("id", event.id)
          .Set("code", error.Get("code"))
          .Set("errno", error.Get("errno"))
          .Set("message", error.Get("message"))
          .object();
    }
  }
  return object.object();
}

using Channel = EventQueue<DiskStore::Event, ToObject>;

std::string Hex(const SyncId& id) {
  std::string text;
  for (const std::byte byte : id) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += kDigits[std::to_integer<unsigned>(byte) >> 4];
    text += kDigits[std::to_integer<unsigned>(byte) & 15];
  }
  return text;
}

Napi::Array ToArray(Napi::Env env, const std::vector<DiskStore::Opened>& opened) {
  const Napi::Array array = Napi::Array::New(env, opened.size());
  for (uint32_t i = 0; i < opened.size(); i++) {
    const DiskStore::Opened& disk = opened[i];
    array.Set(i, ResultObject(env)
                     .Text("id", disk.id)
                     .Flag("fresh", disk.fresh)
                     .Text("syncId", Hex(disk.sync_id))
                     .Flag("trusted", disk.trusted)
                     .Number("markedBytes", disk.marked_bytes)
                     .Number("committedEpoch", disk.committed_epoch)
                     .Flag("recovered", disk.recovered)
                     .object());
  }
  return array;
}

}  // namespace

class DiskStoreCore : public Core {
 public:
  DiskStoreCore(std::shared_ptr<Bridge> bridge, std::shared_ptr<DiskStore> store,
                std::shared_ptr<Channel> channel)
      : Core(std::move(bridge), "hf-disks"), channel_(std::move(channel)), store_(std::move(store)) {}
  ~DiskStoreCore() override { StopAndJoin(); }

  const std::shared_ptr<DiskStore>& store() const { return store_; }
  Channel& channel() { return *channel_; }

 private:
  void Cancel() override { store_->Cancel(); }
  // What could not be written has been told by an event.
  void ReleaseResources() override { (void)store_->Close(); }
  void Ended() override {}

  const std::shared_ptr<Channel> channel_;
  const std::shared_ptr<DiskStore> store_;
};

Napi::Function DiskStoreObject::Define(Napi::Env env) {
  return DefineClass(env, "DiskStore",
                     {
                         InstanceMethod("open", &DiskStoreObject::Open),
                         InstanceMethod("stats", &DiskStoreObject::Stats),
                         InstanceMethod("retire", &DiskStoreObject::Retire),
                         InstanceMethod("close", &DiskStoreObject::Close),
                     });
}

std::shared_ptr<DiskStore> DiskStoreObject::StoreOf(const Napi::Value& value) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kTag)) return nullptr;
  const DiskStoreObject* const object = Unwrap(value.As<Napi::Object>());
  return object->core_->store();
}

DiskStoreObject::DiskStoreObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<DiskStoreObject>(info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  const Napi::Function listener = fields.Callback("onEvent");
  const Napi::Value listed = fields.Get("disks");
  if (listed.IsEmpty() || !listed.IsArray()) fields.Wrong("disks", 0);
  if (!fields.Check()) return;
  std::vector<DiskStore::Disk> disks;
  const auto array = listed.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); i++) {
    Fields of_disk(env, array.Get(i));
    DiskStore::Disk disk{.id = of_disk.Text("id"),
                         .image_path = of_disk.Text("imagePath"),
                         .meta_dir = of_disk.Text("metaDir"),
                         .image_bytes = of_disk.Whole("imageBytes"),
                         .journal_bytes = of_disk.Whole("journalBytes")};
    if (of_disk.Has("adopt")) disk.adopt = of_disk.Flag("adopt");
    if (!of_disk.Check()) return;
    disks.push_back(std::move(disk));
  }
  const auto& bridge = Bridge::Of(env);
  auto channel = std::make_shared<Channel>(bridge, listener);
  auto store = DiskStore::Create(std::move(disks), [channel](const DiskStore::Event& event) {
    channel->Push(event);
  });
  core_ = std::make_shared<DiskStoreCore>(bridge, std::move(store), std::move(channel));
  bridge->Register(core_);
  info.This().As<Napi::Object>().TypeTag(&kTag);
}

DiskStoreObject::~DiskStoreObject() {
  if (core_ == nullptr) return;
  core_->StopAndJoin();
  core_->channel().Close();
  core_->bridge()->Unregister(core_.get());
}

Napi::Value DiskStoreObject::Open(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    auto opened = core->store()->Open();
    if (!opened.ok()) return opened.error();
    return js::Value([disks = opened.value()](Napi::Env env) -> Napi::Value {
      return ToArray(env, disks);
    });
  });
}

Napi::Value DiskStoreObject::Stats(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::vector<DiskStore::Stats> stats = core_->store()->stats();
  const Napi::Array array = Napi::Array::New(env, stats.size());
  for (uint32_t i = 0; i < stats.size(); i++) {
    const DiskStore::Stats& disk = stats[i];
    array.Set(i, ResultObject(env)
                     .Text("id", disk.id)
                     .Number("journalBytes", disk.journal_bytes)
                     .Number("journalUsedBytes", disk.journal_used_bytes)
                     .Number("receivedBytes", disk.received_bytes)
                     .Number("baseBytes", disk.base_bytes)
                     .Number("appliedBytes", disk.applied_bytes)
                     .Number("committedEpoch", disk.committed_epoch)
                     .Number("durableEpoch", disk.durable_epoch)
                     .Flag("merging", disk.merging)
                     .object());
  }
  return array;
}

Napi::Value DiskStoreObject::Retire(const Napi::CallbackInfo& info) {
  return core_->Submit(info.Env(), Value(), [core = core_.get()]() -> Result<js::Value> {
    return FromStatus(core->store()->Retire());
  });
}

Napi::Value DiskStoreObject::Close(const Napi::CallbackInfo& info) {
  const Napi::Value closed = core_->Close(info.Env(), Value());
  core_->channel().Close();
  return closed;
}

}  // namespace holdfast::js
