// The layers of a checkpoint, as options objects name them.
#pragma once

#include <napi.h>

#include <string>
#include <vector>

#include "checkpoint/layer_chain.h"
#include "js/fields.h"

namespace holdfast::js {

// 16 hexadecimal digits.
std::string ToDigestText(uint64_t digest);

LayerFiles ToLayer(Napi::Env env, const Napi::Value& value, Fields& outer, const char* name);

// `layers`, bottom first.
std::vector<LayerFiles> ToLayers(Napi::Env env, Fields& fields);

}  // namespace holdfast::js
