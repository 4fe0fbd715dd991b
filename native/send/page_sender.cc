#include "send/page_sender.h"

namespace holdfast {

std::unique_ptr<PageSender> PageSender::Make(Strategy strategy) {
  switch (strategy) {
    case Strategy::kCopy: return MakeCopySender();
    case Strategy::kSendfile: return MakeSendfileSender();
    case Strategy::kSplice: return MakeSpliceSender();
    case Strategy::kVmsplice: return MakeVmspliceSender();
    case Strategy::kZerocopy: return MakeZerocopySender();
    case Strategy::kUring: return MakeUringSender();
  }
  HF_ASSERT(!"a strategy");
}

}  // namespace holdfast
