#include "js/disk_fields.h"

#include <algorithm>
#include <utility>

#include "js/result_object.h"

namespace holdfast::js {
namespace {

// The objects of an array; wrong if it is none, or too long.
std::vector<Napi::Value> Elements(Fields& fields, const char* name) {
  const Napi::Value value = fields.Get(name);
  std::vector<Napi::Value> elements;
  if (value.IsEmpty() || !value.IsArray() || value.As<Napi::Array>().Length() > kDisksMax) {
    fields.Wrong(name, 0);
    return elements;
  }
  const auto array = value.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); i++) elements.push_back(array.Get(i));
  return elements;
}

int DigitOf(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// Of the log since the connection, not since the ring was made.
uint64_t Since(uint64_t start, uint64_t lsn) { return lsn - std::min(lsn, start); }

}  // namespace

std::vector<Shipper::Disk> ToDisks(Napi::Env env, Fields& fields) {
  std::vector<Shipper::Disk> disks;
  for (const Napi::Value& element : Elements(fields, "disks")) {
    Fields from(env, element);
    Shipper::Disk& disk = disks.emplace_back();
    disk.id = from.Text("id");
    disk.ring_path = from.Text("ringPath");
    disk.map_path = from.Text("mapPath");
    disk.image_path = from.Text("imagePath");
    disk.image_bytes = from.Whole("imageBytes");
    const bool twice = std::any_of(disks.begin(), disks.end() - 1,
                                   [&](const Shipper::Disk& other) { return other.id == disk.id; });
    if (twice || disk.id.empty() || disk.id.size() > kDiskIdBytesMax) from.Wrong("id", 0);
    if (disk.image_bytes == 0) from.Wrong("imageBytes", 0);
    if (!from.Check()) break;
  }
  return disks;
}

std::vector<DiskIndex::Disk> ToIndexedDisks(Napi::Env env, Fields& fields) {
  std::vector<DiskIndex::Disk> disks;
  for (const Napi::Value& element : Elements(fields, "disks")) {
    Fields from(env, element);
    const uint64_t number = from.Whole("number");
    if (number >= kReferenceDisksMax) from.Wrong("number", 0);
    disks.push_back({static_cast<uint32_t>(number), from.Text("path"), from.Whole("bytes")});
    if (!from.Check()) break;
  }
  return disks;
}

std::vector<ReferenceDisks::Disk> ToReferenceDisks(Napi::Env env, Fields& fields) {
  std::vector<ReferenceDisks::Disk> disks;
  for (const Napi::Value& element : Elements(fields, "referenceDisks")) {
    Fields from(env, element);
    disks.push_back({from.Text("path"), from.Whole("bytes")});
    if (!from.Check()) break;
  }
  if (disks.size() > kReferenceDisksMax) fields.Wrong("referenceDisks", 0);
  return disks;
}

std::vector<Shipper::Plan> ToPlans(Napi::Env env, Fields& fields) {
  std::vector<Shipper::Plan> plans;
  for (const Napi::Value& element : Elements(fields, "plans")) {
    Fields from(env, element);
    Shipper::Plan& plan = plans.emplace_back();
    plan.id = from.Text("id");
    const std::string what = from.Text("what");
    if (what != "all" && what != "changed") from.Wrong("what", 0);
    plan.what = what == "changed" ? DiskPlan::What::kChanged : DiskPlan::What::kAll;
    if (!from.Check()) break;
  }
  return plans;
}

SyncId ToSyncId(Fields& fields, const char* name) {
  SyncId sync_id{};
  const std::string text = fields.Text(name);
  if (text.size() != 2 * sync_id.size()) {
    fields.Wrong(name, 0);
    return sync_id;
  }
  for (size_t i = 0; i < sync_id.size(); i++) {
    const int high = DigitOf(text[2 * i]);
    const int low = DigitOf(text[2 * i + 1]);
    if (high < 0 || low < 0) fields.Wrong(name, 0);
    sync_id[i] = static_cast<std::byte>(high * 16 + low);
  }
  return sync_id;
}

std::string ToText(const SyncId& sync_id) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : sync_id) {
    text += kDigits[std::to_integer<unsigned>(byte) >> 4];
    text += kDigits[std::to_integer<unsigned>(byte) & 15];
  }
  return text;
}

Value ToValue(std::vector<Shipper::Difference> differences) {
  return [differences = std::move(differences)](Napi::Env env) {
    auto array = Napi::Array::New(env, differences.size());
    for (uint32_t i = 0; i < differences.size(); i++) {
      const Shipper::Difference& one = differences[i];
      array.Set(i, ResultObject(env)
                       .Text("id", one.peer.id)
                       .Text("syncId", ToText(one.peer.sync_id))
                       .Flag("trusted", one.peer.trusted)
                       .Flag("fresh", one.peer.fresh)
                       .Number("markedBytes", std::min(one.peer.marked_blocks * kDiskBlockBytes,
                                                       one.peer.image_bytes))
                       .Text("localSyncId", ToText(one.local_sync_id))
                       .Flag("localTrusted", one.local_trusted)
                       .Number("localMarkedBytes", one.local_marked_bytes)
                       .object());
    }
    return array;
  };
}

Value ToValue(const Shipper::Synced& synced) {
  return [synced](Napi::Env env) {
    return ResultObject(env)
        .Number("bytes", synced.bytes)
        .Number("holeBytes", synced.hole_bytes)
        .Number("millis", synced.millis)
        .object();
  };
}

Napi::Array ToArray(Napi::Env env, const ShippedDisks& disks) {
  auto array = Napi::Array::New(env, disks.disks.size());
  for (uint32_t i = 0; i < disks.disks.size(); i++) {
    const ShippedDisks::Disk& disk = *disks.disks[i];
    const LogReader& log = *disk.log;
    const RingHeader& header = log.ring().header();
    // In this order none is ahead of the one before.
    const uint64_t received = log.received();
    const uint64_t sent = log.sent();
    const uint64_t head = header.head.load();
    array.Set(i, ResultObject(env)
                     .Text("id", disk.id)
                     .Number("loggedBytes", Since(log.start(), head))
                     .Number("shippedBytes", Since(log.start(), sent))
                     .Number("receivedBytes", Since(log.start(), received))
                     .Number("ringUsedBytes", Since(received, head))
                     .Number("ringBytes", log.ring().ring_bytes())
                     .Number("copiedBytes", disk.copied_bytes.load())
                     .Number("flushesOwed", header.flushes_owed.load())
                     .Number("flushesPaid", header.flushes_paid.load())
                     .object());
  }
  return array;
}

}  // namespace holdfast::js
