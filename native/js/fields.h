// Reads the properties of an options object. The first one that is missing or
// of the wrong type is remembered, and thrown by Check as a TypeError: the
// typings promise it does not happen, so this is the net below them.
#pragma once

#include <napi.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <optional>
#include <string>

namespace holdfast::js {

class Fields {
 public:
  Fields(Napi::Env env, Napi::Value value) : env_(env) {
    if (value.IsObject()) {
      object_ = value.As<Napi::Object>();
    } else {
      wrong_ = "options";
    }
  }

  bool Has(const char* name) { return !Get(name).IsEmpty() && !Get(name).IsUndefined(); }

  // A whole number from 0 to 2^53 - 1.
  uint64_t Whole(const char* name) {
    const Napi::Value value = Get(name);
    const double number = Is(name, value, napi_number) ? value.As<Napi::Number>().DoubleValue() : 0;
    constexpr double kMax = 9007199254740991.0;
    if (!(number >= 0 && number <= kMax) || std::floor(number) != number) return Wrong(name, 0);
    return static_cast<uint64_t>(number);
  }

  uint64_t BigWhole(const char* name) {
    const Napi::Value value = Get(name);
    if (!Is(name, value, napi_bigint)) return 0;
    bool lossless = false;
    const uint64_t number = value.As<Napi::BigInt>().Uint64Value(&lossless);
    return lossless ? number : Wrong(name, 0);
  }

  std::string Text(const char* name) {
    const Napi::Value value = Get(name);
    return Is(name, value, napi_string) ? value.As<Napi::String>().Utf8Value() : std::string();
  }

  bool Flag(const char* name) {
    const Napi::Value value = Get(name);
    return Is(name, value, napi_boolean) && value.As<Napi::Boolean>().Value();
  }

  Napi::Function Callback(const char* name) {
    const Napi::Value value = Get(name);
    return Is(name, value, napi_function) ? value.As<Napi::Function>() : Napi::Function();
  }

  std::array<std::byte, 32> Token(const char* name) {
    std::array<std::byte, 32> token{};
    const Napi::Value value = Get(name);
    if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array ||
        value.As<Napi::TypedArray>().ByteLength() != token.size()) {
      Wrong(name, 0);
      return token;
    }
    std::memcpy(token.data(), value.As<Napi::Uint8Array>().Data(), token.size());
    return token;
  }

  Napi::Value Get(const char* name) {
    if (object_.IsEmpty()) return {};
    return object_.Get(name);
  }

  uint64_t Wrong(const char* name, uint64_t value) {
    if (wrong_ == nullptr) wrong_ = name;
    return value;
  }

  // False: a TypeError is pending.
  bool Check() {
    if (env_.IsExceptionPending()) return false;
    if (wrong_ == nullptr) return true;
    Napi::TypeError::New(env_, std::string("holdfast: bad or missing value: ") + wrong_)
        .ThrowAsJavaScriptException();
    return false;
  }

 private:
  bool Is(const char* name, const Napi::Value& value, napi_valuetype type) {
    if (!value.IsEmpty() && value.Type() == type) return true;
    Wrong(name, 0);
    return false;
  }

  Napi::Env env_;
  Napi::Object object_;
  const char* wrong_ = nullptr;
};

}  // namespace holdfast::js
