#include "js/background.h"

#include <atomic>
#include <utility>

#include "base/thread.h"

namespace holdfast::js {
namespace {

// Calls in flight over the whole process; each is a thread.
constexpr int kBackgroundCallsMax = 32;
std::atomic<int> g_background_calls{0};

class Background : public Stoppable {
 public:
  ~Background() override { g_background_calls.fetch_sub(1); }

  void Start(const std::shared_ptr<Background>& self, std::shared_ptr<Bridge> bridge,
             std::shared_ptr<Pending> pending, Work work) {
    // `self` is registered with the bridge, which outlives the thread.
    thread_ = Thread("hf-background", [weak = std::weak_ptr(self), this, bridge = std::move(bridge),
                                       pending = std::move(pending), work = std::move(work)] {
      Result<Value> outcome = work(cancel_);
      // Joined before the promise settles, so that no thread outlives its call.
      bridge->Post([weak, bridge](Napi::Env) {
        const auto background = weak.lock();
        if (background == nullptr) return;
        background->thread_.Join();
        bridge->Unregister(background.get());
      });
      pending->Settle(std::move(outcome));
    });
  }

  void StopAndJoin() override {
    cancel_.Cancel();
    thread_.Join();
  }

 private:
  CancelSignal cancel_;
  Thread thread_;  // last: it uses the signal
};

}  // namespace

Napi::Value RunInBackground(Napi::Env env, Work work) {
  if (g_background_calls.fetch_add(1) >= kBackgroundCallsMax) {
    g_background_calls.fetch_sub(1);
    return Rejected(env, Error::Of(ErrorCode::kLimit, "too many native calls at a time"));
  }
  const auto& bridge = Bridge::Of(env);
  const auto background = std::make_shared<Background>();
  bridge->Register(background);
  const auto pending = Pending::Create(env);
  background->Start(background, bridge, pending, std::move(work));
  return pending->promise();
}

}  // namespace holdfast::js
