#include "js/guest_trace.h"

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "guest/ram.h"
#include "js/background.h"
#include "js/bridge.h"
#include "js/fields.h"
#include "js/result_object.h"
#include "js/trace_fields.h"
#include "trace/guest_sampler.h"

namespace holdfast::js {

struct GuestTraceOptions {
  pid_t pid = 0;
  uint64_t host_address = 0;
  uint64_t ram_bytes = 0;
  uint64_t file_offset = 0;
  std::vector<PhysicalRange> ranges;
  GuestSymbols symbols;
  GuestSampler::Options sampler;
};

class GuestTraceCore {
 public:
  explicit GuestTraceCore(GuestTraceOptions options) : options_(std::move(options)) {}

  // Reads some MiB of the guest's RAM: not on the JavaScript thread.
  Result<std::string> Start(const CancelSignal& cancel) {
    const auto located = LocateRamMapping(options_.pid, options_.host_address, options_.ram_bytes,
                                          options_.file_offset);
    if (!located.ok()) return located.error();
    auto file = OpenRamFile(options_.pid, located.value());
    if (!file.ok()) return file.error();
    GuestMemory memory(std::move(file).value(), options_.ranges);
    auto kernel = GuestKernel::Locate(memory, options_.symbols, options_.sampler.vcpus, cancel);
    if (!kernel.ok()) return kernel.error();
    const std::lock_guard lock(mutex_);
    sampler_ = std::make_unique<GuestSampler>(std::move(memory), std::move(kernel).value(),
                                              options_.sampler);
    return sampler_->banner();
  }

  // What was seen last stays, to be taken.
  void Close() {
    const std::lock_guard lock(mutex_);
    if (sampler_ == nullptr) return;
    sampler_->Stop();
    left_ = sampler_->Take();
    last_stats_ = sampler_->Stats();
    sampler_.reset();
  }

  GuestSampler::Taken Take() {
    const std::lock_guard lock(mutex_);
    return sampler_ == nullptr ? std::exchange(left_, {}) : sampler_->Take();
  }

  GuestSamplerStats Stats() const {
    const std::lock_guard lock(mutex_);
    return sampler_ == nullptr ? last_stats_ : sampler_->Stats();
  }

 private:
  const GuestTraceOptions options_;
  mutable std::mutex mutex_;  // guards the rest
  std::unique_ptr<GuestSampler> sampler_;
  GuestSampler::Taken left_;
  GuestSamplerStats last_stats_;
};

namespace {

// Guest-physical ranges of RAM, and where they lie in the file.
std::vector<PhysicalRange> RangesOf(Napi::Env env, Fields& options, uint64_t file_offset) {
  std::vector<PhysicalRange> ranges;
  const Napi::Value value = options.Get("ranges");
  if (value.IsEmpty() || !value.IsArray()) {
    options.Wrong("ranges", 0);
    return ranges;
  }
  const auto array = value.As<Napi::Array>();
  for (uint32_t index = 0; index < array.Length(); ++index) {
    Fields range(env, array.Get(index));
    ranges.push_back({range.Whole("start"), range.Whole("bytes"),
                      file_offset + range.Whole("ramOffset")});
    if (!range.Check()) options.Wrong("ranges", 0);
  }
  return ranges;
}

GuestSymbols SymbolsOf(Napi::Env env, Fields& options) {
  Fields symbols(env, options.Get("symbols"));
  GuestSymbols found{
      .text = symbols.BigWhole("_text"),
      .linux_banner = symbols.BigWhole("linux_banner"),
      .per_cpu_offset = symbols.BigWhole("__per_cpu_offset"),
      .runqueues = symbols.BigWhole("runqueues"),
      .start_btf = symbols.BigWhole("__start_BTF"),
      .stop_btf = symbols.BigWhole("__stop_BTF"),
  };
  if (symbols.Has("page_offset_base")) found.page_offset_base = symbols.BigWhole("page_offset_base");
  if (!symbols.Check()) options.Wrong("symbols", 0);
  return found;
}

}  // namespace

Napi::Function GuestTraceObject::Define(Napi::Env env) {
  return DefineClass(env, "GuestTrace",
                     {
                         InstanceMethod("start", &GuestTraceObject::Start),
                         InstanceMethod("take", &GuestTraceObject::Take),
                         InstanceMethod("stats", &GuestTraceObject::Stats),
                         InstanceMethod("close", &GuestTraceObject::Close),
                     });
}

GuestTraceObject::GuestTraceObject(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<GuestTraceObject>(info) {
  const Napi::Env env = info.Env();
  Fields fields(env, info[0]);
  Fields ram(env, fields.Get("ram"));
  GuestTraceOptions options;
  options.pid = static_cast<pid_t>(fields.Whole("pid"));
  options.host_address = ram.BigWhole("hostAddress");
  options.ram_bytes = ram.Whole("sizeBytes");
  options.file_offset = ram.Whole("fileOffset");
  options.ranges = RangesOf(env, fields, options.file_offset);
  options.symbols = SymbolsOf(env, fields);
  options.sampler = {.vcpus = static_cast<uint32_t>(fields.Whole("vcpus")),
                     .interval_ns = fields.Whole("intervalUs") * 1000,
                     .events_max = fields.Whole("eventsMax")};
  if (options.sampler.vcpus == 0 || options.sampler.vcpus > UINT16_MAX) fields.Wrong("vcpus", 0);
  if (options.sampler.interval_ns == 0) fields.Wrong("intervalUs", 0);
  if (options.sampler.events_max == 0) fields.Wrong("eventsMax", 0);
  if (fields.Check() && ram.Check()) core_ = std::make_shared<GuestTraceCore>(std::move(options));
}

Napi::Value GuestTraceObject::Start(const Napi::CallbackInfo& info) {
  return RunInBackground(
      info.Env(), [core = core_](const CancelSignal& cancel) -> Result<js::Value> {
        auto banner = core->Start(cancel);
        if (!banner.ok()) return banner.error();
        return js::Value([text = std::move(banner).value()](Napi::Env env) -> Napi::Value {
          return Napi::String::New(env, text);
        });
      });
}

Napi::Value GuestTraceObject::Take(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto taken = core_->Take();
  const auto names = Napi::Array::New(env, taken.names.size());
  for (size_t index = 0; index < taken.names.size(); ++index) {
    names.Set(static_cast<uint32_t>(index), Napi::String::New(env, taken.names[index]));
  }
  return ResultObject(env).Set("events", BytesOf(env, taken.events)).Set("names", names).object();
}

Napi::Value GuestTraceObject::Stats(const Napi::CallbackInfo& info) {
  const GuestSamplerStats stats = core_->Stats();
  return ResultObject(info.Env())
      .Number("looks", stats.looks)
      .Number("late", stats.late)
      .Number("unread", stats.unread)
      .Number("discarded", stats.discarded)
      .object();
}

Napi::Value GuestTraceObject::Close(const Napi::CallbackInfo& info) {
  return RunInBackground(info.Env(), [core = core_](const CancelSignal&) -> Result<js::Value> {
    core->Close();
    return Undefined();
  });
}

}  // namespace holdfast::js
