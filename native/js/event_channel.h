// Receiver events on their way to JavaScript.
#pragma once

#include <napi.h>

#include "js/event_queue.h"
#include "receive/receiver.h"

namespace holdfast::js {

Napi::Object ToObject(Napi::Env env, const ReceiverEvent& event);

using EventChannel = EventQueue<ReceiverEvent, ToObject>;

}  // namespace holdfast::js
