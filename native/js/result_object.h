// Builds the plain objects that results and events are.
#pragma once

#include <napi.h>

#include <cstdint>
#include <string>

namespace holdfast::js {

class ResultObject {
 public:
  explicit ResultObject(Napi::Env env) : env_(env), object_(Napi::Object::New(env)) {}
  ResultObject& Number(const char* name, double value) {
    object_.Set(name, Napi::Number::New(env_, value));
    return *this;
  }
  ResultObject& Number(const char* name, uint64_t value) {
    return Number(name, static_cast<double>(value));
  }
  ResultObject& Number(const char* name, int value) {
    return Number(name, static_cast<double>(value));
  }
  ResultObject& Flag(const char* name, bool value) {
    object_.Set(name, Napi::Boolean::New(env_, value));
    return *this;
  }
  ResultObject& Text(const char* name, const std::string& value) {
    object_.Set(name, Napi::String::New(env_, value));
    return *this;
  }
  ResultObject& Set(const char* name, const Napi::Value& value) {
    object_.Set(name, value);
    return *this;
  }
  Napi::Object object() const { return object_; }

 private:
  Napi::Env env_;
  Napi::Object object_;
};

}  // namespace holdfast::js
