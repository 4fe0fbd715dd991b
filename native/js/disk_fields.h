// The disks of lib/native.ts's PrimaryEngine, to and from JavaScript.
#pragma once

#include <napi.h>

#include <string>
#include <vector>

#include "disk/shipper.h"
#include "js/bridge.h"
#include "js/fields.h"
#include "receive/reference_disks.h"
#include "send/disk_index.h"

namespace holdfast::js {

// What is missing or wrong shows in fields.Check().
std::vector<Shipper::Disk> ToDisks(Napi::Env env, Fields& fields);
// Of indexDisks, and of a receiver's session: what pages may be referred to.
std::vector<DiskIndex::Disk> ToIndexedDisks(Napi::Env env, Fields& fields);
std::vector<ReferenceDisks::Disk> ToReferenceDisks(Napi::Env env, Fields& fields);
std::vector<Shipper::Plan> ToPlans(Napi::Env env, Fields& fields);
SyncId ToSyncId(Fields& fields, const char* name);

std::string ToText(const SyncId& sync_id);  // 32 hexadecimal digits
Value ToValue(std::vector<Shipper::Difference> differences);
Value ToValue(const Shipper::Synced& synced);
Napi::Array ToArray(Napi::Env env, const ShippedDisks& disks);

}  // namespace holdfast::js
