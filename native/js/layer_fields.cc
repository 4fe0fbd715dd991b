#include "js/layer_fields.h"

#include <charconv>
#include <cstdio>

namespace holdfast::js {
namespace {

constexpr size_t kDigestDigits = 16;

uint64_t ToDigest(Fields& fields, const char* name) {
  const std::string text = fields.Text(name);
  uint64_t digest = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, digest, 16);
  if (text.size() != kDigestDigits || parsed.ptr != end) fields.Wrong(name, 0);
  return digest;
}

}  // namespace

std::string ToDigestText(uint64_t digest) {
  char text[kDigestDigits + 1];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(digest));
  return text;
}

LayerFiles ToLayer(Napi::Env env, const Napi::Value& value, Fields& outer, const char* name) {
  LayerFiles layer;
  if (value.IsEmpty() || !value.IsObject()) {
    outer.Wrong(name, 0);
    return layer;
  }
  Fields fields(env, value);
  layer.ram = fields.Text("ram");
  layer.index = fields.Text("index");
  layer.trailer = ToDigest(fields, "digest");
  (void)fields.Check();
  return layer;
}

std::vector<LayerFiles> ToLayers(Napi::Env env, Fields& fields) {
  std::vector<LayerFiles> layers;
  const Napi::Value value = fields.Get("layers");
  if (value.IsEmpty() || !value.IsArray() || value.As<Napi::Array>().Length() == 0) {
    fields.Wrong("layers", 0);
    return layers;
  }
  const auto list = value.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    layers.push_back(ToLayer(env, list.Get(i), fields, "layers"));
  }
  return layers;
}

}  // namespace holdfast::js
