#include "js/functions.h"

#include <sys/file.h>

#include <cerrno>
#include <cstdio>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/descriptor.h"
#include "base/files.h"
#include "base/thread.h"
#include "base/unix_socket.h"
#include "guest/probe.h"
#include "guest/ram.h"
#include "js/background.h"
#include "js/bridge.h"
#include "js/counters.h"
#include "js/result_object.h"
#include "send/probe.h"

namespace holdfast::js {
namespace {

// Positional arguments; a wrong type throws, as in Fields.
bool Expect(const Napi::CallbackInfo& info, size_t index, bool right, const char* name) {
  if (index < info.Length() && right) return true;
  Napi::TypeError::New(info.Env(), std::string("holdfast: bad or missing argument: ") + name)
      .ThrowAsJavaScriptException();
  return false;
}

bool IsWhole(const Napi::Value& value) {
  return value.IsNumber() && value.As<Napi::Number>().DoubleValue() >= 0;
}

uint64_t ToWhole(const Napi::Value& value) {
  return static_cast<uint64_t>(value.As<Napi::Number>().Int64Value());
}

Napi::Object ToObject(Napi::Env env, const RamMapping& mapping) {
  return ResultObject(env)
      .Set("hostAddress", Napi::BigInt::New(env, mapping.host_address))
      .Number("sizeBytes", mapping.size_bytes)
      .Number("fileOffset", mapping.file_offset)
      .Text("path", mapping.path)
      .Flag("deleted", mapping.deleted)
      .Flag("shared", mapping.shared)
      .Number("pageSize", uint64_t{mapping.page_size})
      .object();
}

Napi::Object ToObject(Napi::Env env, const KernelProbe& probe) {
  const Napi::Object userfaultfd = ResultObject(env)
                                       .Flag("ok", probe.userfaultfd_errno == 0)
                                       .Number("errno", probe.userfaultfd_errno)
                                       .object();
  return ResultObject(env)
      .Text("release", probe.release)
      .Set("userfaultfd", userfaultfd)
      .Flag("wpAsync", probe.wp_async)
      .Flag("pagemapScan", probe.pagemap_scan)
      .Flag("ptrace", probe.ptrace)
      .Flag("pidfdGetfd", probe.pidfd_getfd)
      .Number("memlockBytes", static_cast<double>(probe.memlock_bytes))
      .Text("capEff", probe.cap_eff)
      .object();
}

Napi::Object ToObject(Napi::Env env, const SenderProbe& probe) {
  ResultObject object(env);
  object.Flag("zerocopy", probe.zerocopy).Flag("uring", probe.uring);
  if (!probe.zerocopy) object.Text("zerocopyReason", probe.zerocopy_reason);
  if (!probe.uring) object.Text("uringReason", probe.uring_reason);
  return object.Flag("uringUsageReports", probe.uring_usage_reports)
      .Flag("uringFixedBuffers", probe.uring_fixed_buffers)
      .Number("optmemBytesMax", static_cast<double>(probe.optmem_bytes_max))
      .Number("memlockBytesMax", static_cast<double>(probe.memlock_bytes_max))
      .object();
}

// List of anything that ToElement can turn into a value.
template <typename T, typename Convert>
Value ToList(std::vector<T> items, Convert convert) {
  return [items = std::move(items), convert](Napi::Env env) -> Napi::Value {
    Napi::Array list = Napi::Array::New(env, items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      list.Set(static_cast<uint32_t>(i), convert(env, items[i]));
    }
    return list;
  };
}

}  // namespace

Napi::Value ProbeKernelAsync(const Napi::CallbackInfo& info) {
  return RunInBackground(info.Env(), [](const CancelSignal&) -> Result<Value> {
    return Value([probe = ProbeKernel()](Napi::Env env) -> Napi::Value {
      return ToObject(env, probe);
    });
  });
}

// A few calls on sockets and rings of its own: nothing that waits.
Napi::Value ProbeSendersSync(const Napi::CallbackInfo& info) {
  return ToObject(info.Env(), ProbeSenders());
}

Napi::Value FindRamMappingsAsync(const Napi::CallbackInfo& info) {
  if (!Expect(info, 0, IsWhole(info[0]), "pid")) return {};
  if (!Expect(info, 1, IsWhole(info[1]), "minBytes")) return {};
  const auto pid = static_cast<pid_t>(ToWhole(info[0]));
  const uint64_t min_bytes = ToWhole(info[1]);
  return RunInBackground(info.Env(), [pid, min_bytes](const CancelSignal&) -> Result<Value> {
    auto found = FindRamMappings(pid, min_bytes);
    if (!found.ok()) return found.error();
    return ToList(std::move(found).value(), [](Napi::Env env, const RamMapping& mapping) {
      return ToObject(env, mapping);
    });
  });
}

Napi::Value PeerPidSync(const Napi::CallbackInfo& info) {
  if (!Expect(info, 0, IsWhole(info[0]), "socketFd")) return {};
  const auto pid = PeerPid(static_cast<int>(ToWhole(info[0])));
  if (!pid.ok()) {
    ToJs(info.Env(), pid.error()).ThrowAsJavaScriptException();
    return {};
  }
  return Napi::Number::New(info.Env(), pid.value());
}

void SendWithFdSync(const Napi::CallbackInfo& info) {
  if (!Expect(info, 0, IsWhole(info[0]), "socketFd")) return;
  const bool is_bytes = info[1].IsTypedArray() &&
                        info[1].As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array;
  if (!Expect(info, 1, is_bytes, "data") || !Expect(info, 2, IsWhole(info[2]), "fd")) return;
  const auto data = info[1].As<Napi::Uint8Array>();
  const Status sent = SendWithFd(static_cast<int>(ToWhole(info[0])),
                                 std::as_bytes(std::span(data.Data(), data.ByteLength())),
                                 static_cast<int>(ToWhole(info[2])));
  if (!sent.ok()) ToJs(info.Env(), sent.error()).ThrowAsJavaScriptException();
}

// Waits for nobody: who has it keeps it.
Napi::Value LockFileSync(const Napi::CallbackInfo& info) {
  if (!Expect(info, 0, IsWhole(info[0]), "fd")) return {};
  if (::flock(static_cast<int>(ToWhole(info[0])), LOCK_EX | LOCK_NB) == 0) {
    return Napi::Boolean::New(info.Env(), true);
  }
  if (errno == EWOULDBLOCK) return Napi::Boolean::New(info.Env(), false);
  ToJs(info.Env(), Error::FromErrno("flock", "locking a file")).ThrowAsJavaScriptException();
  return {};
}

Napi::Value HashFileAsync(const Napi::CallbackInfo& info) {
  if (!Expect(info, 0, info[0].IsString(), "path")) return {};
  if (!Expect(info, 1, IsWhole(info[1]), "bytes")) return {};
  const std::string path = info[0].As<Napi::String>().Utf8Value();
  const uint64_t bytes = ToWhole(info[1]);
  return RunInBackground(info.Env(), [path, bytes](const CancelSignal& cancel) -> Result<Value> {
    const auto hash = HashFile(path, bytes, cancel);
    if (!hash.ok()) return hash.error();
    return Value([digest = hash.value()](Napi::Env env) -> Napi::Value {
      char text[17];
      std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(digest));
      return Napi::String::New(env, text);
    });
  });
}

Napi::Value CompareFilesAsync(const Napi::CallbackInfo& info) {
  if (!Expect(info, 0, info[0].IsString(), "a") || !Expect(info, 1, info[1].IsString(), "b") ||
      !Expect(info, 2, IsWhole(info[2]), "bytes") ||
      !Expect(info, 3, IsWhole(info[3]) && ToWhole(info[3]) > 0, "pageSize") ||
      !Expect(info, 4, IsWhole(info[4]), "limit")) {
    return {};
  }
  const std::string left = info[0].As<Napi::String>().Utf8Value();
  const std::string right = info[1].As<Napi::String>().Utf8Value();
  const uint64_t bytes = ToWhole(info[2]);
  const auto page_size = static_cast<uint32_t>(ToWhole(info[3]));
  const uint64_t limit = ToWhole(info[4]);
  return RunInBackground(info.Env(), [=](const CancelSignal& cancel) -> Result<Value> {
    auto pages = CompareFiles(left, right, bytes, page_size, limit, cancel);
    if (!pages.ok()) return pages.error();
    return ToList(std::move(pages).value(), [](Napi::Env env, uint64_t page) {
      return Napi::Number::New(env, static_cast<double>(page));
    });
  });
}

Napi::Value DebugCounters(const Napi::CallbackInfo& info) {
  return ResultObject(info.Env())
      .Number("threads", g_threads_open.load())
      .Number("engines", g_engines_open.load())
      .Number("descriptors", g_descriptors_open.load())
      .object();
}

}  // namespace holdfast::js
