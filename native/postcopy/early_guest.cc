#include "postcopy/early_guest.h"

#include <utility>

namespace holdfast {

Result<std::unique_ptr<EarlyGuest>> EarlyGuest::Start(const Options& options,
                                                      const OriginMaker& make_origin,
                                                      FaultServer::EventSink sink) {
  auto located = LocateRamMapping(options.ram.pid, options.ram.host_address, options.ram.ram_bytes,
                                  options.ram.file_offset);
  if (!located.ok()) return located.error();
  const uint32_t page_size = located.value().page_size;
  auto ram = OpenRamFileForWriting(options.ram.pid, located.value());
  if (!ram.ok()) return ram.error();
  auto origin = make_origin(options.ram.ram_bytes / page_size, page_size);
  if (!origin.ok()) return origin.error();
  auto userfault =
      Userfault::AcquireMissing(options.ram.pid, options.ram.host_address, options.ram.ram_bytes);
  if (!userfault.ok()) return userfault.error();

  std::unique_ptr<EarlyGuest> guest(new EarlyGuest());
  guest->userfault_ = std::move(userfault).value();
  guest->ram_ = std::move(ram).value();
  auto server = FaultServer::Start({.event_fd = guest->userfault_->fd(),
                                    .address = options.ram.host_address,
                                    .ram_bytes = options.ram.ram_bytes,
                                    .page_size = page_size,
                                    .ram_fd = guest->ram_.get(),
                                    .file_offset = options.ram.file_offset,
                                    .empty_all = options.empty_all},
                                   std::move(origin).value(), std::move(sink));
  if (!server.ok()) {
    (void)guest->userfault_->Release();
    return server.error();
  }
  guest->server_ = std::move(server).value();
  return guest;
}

Status EarlyGuest::Release() {
  server_->Stop();
  return userfault_->Release();
}

}  // namespace holdfast
