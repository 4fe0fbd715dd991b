#include "output/netlink_socket.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace holdfast {
namespace {

// A link with everything the kernel tells of it takes a few KiB.
constexpr size_t kAnswerBytesMax = 64 << 10;
// rtnetlink answers within sendmsg. Where it doesn't, something is badly wrong.
constexpr timeval kAnswerTimeout{.tv_sec = 5, .tv_usec = 0};

Error Refused(const nlmsghdr* header, size_t bytes, const std::string& what) {
  nlmsgerr refusal{};
  std::memcpy(&refusal, NLMSG_DATA(header), sizeof refusal);
  // With NETLINK_CAP_ACK the request is not repeated before these attributes.
  const size_t fixed_bytes = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof refusal);
  std::string words;
  if ((header->nlmsg_flags & NLM_F_ACK_TLVS) != 0 && bytes > fixed_bytes) {
    const auto text = FindAttribute(
        {reinterpret_cast<const std::byte*>(header) + fixed_bytes, bytes - fixed_bytes},
        NLMSGERR_ATTR_MSG);
    const auto* first = reinterpret_cast<const char*>(text.data());
    words.assign(first, std::find(first, first + text.size(), '\0'));
  }
  Error error = Error::Of(ErrorCode::kSyscall,
                          what + ": " + (words.empty() ? std::strerror(-refusal.error) : words));
  error.sys_errno = -refusal.error;
  error.syscall = "netlink";
  return error;
}

}  // namespace

Result<NetlinkSocket> NetlinkSocket::Open() {
  Descriptor socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!socket.valid()) return Error::FromErrno("socket", "NETLINK_ROUTE");
  const int on = 1;
  // Only the wording of errors depends on these two.
  ::setsockopt(socket.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  ::setsockopt(socket.get(), SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &kAnswerTimeout, sizeof kAnswerTimeout) !=
      0) {
    return Error::FromErrno("setsockopt", "SO_RCVTIMEO");
  }
  return NetlinkSocket(std::move(socket));
}

Status NetlinkSocket::Execute(nlmsghdr* request, const std::string& what) {
  const auto answer = Query(request, what);
  if (!answer.ok()) return answer.error();
  return {};
}

Result<std::vector<std::byte>> NetlinkSocket::Query(nlmsghdr* request, const std::string& what) {
  request->nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
  request->nlmsg_seq = ++sequence_;
  request->nlmsg_pid = 0;
  if (::send(socket_.get(), request, request->nlmsg_len, 0) < 0) {
    return Error::FromErrno("send", what);
  }
  std::vector<std::byte> answer;
  std::vector<std::byte> buffer(kAnswerBytesMax);
  for (;;) {
    const ssize_t received = ::recv(socket_.get(), buffer.data(), buffer.size(), MSG_TRUNC);
    if (received < 0) return Error::FromErrno("recv", what);
    if (static_cast<size_t>(received) > buffer.size()) {
      return Error::Of(ErrorCode::kLimit, what + ": the kernel's answer is too long");
    }
    auto left = static_cast<size_t>(received);
    const auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
    for (; NLMSG_OK(header, left); header = NLMSG_NEXT(header, left)) {
      if (header->nlmsg_seq != sequence_) continue;  // of a request that failed half-way
      if (header->nlmsg_type == NLMSG_ERROR) {
        if (header->nlmsg_len < NLMSG_LENGTH(sizeof(nlmsgerr))) continue;
        nlmsgerr verdict{};
        std::memcpy(&verdict, NLMSG_DATA(header), sizeof verdict);
        if (verdict.error != 0) return Refused(header, header->nlmsg_len, what);
        return answer;
      }
      if (answer.empty()) {
        const auto* first = reinterpret_cast<const std::byte*>(header);
        answer.assign(first, first + header->nlmsg_len);
      }
    }
  }
}

std::span<const std::byte> FindAttribute(std::span<const std::byte> attributes, uint16_t type) {
  while (attributes.size() >= sizeof(nlattr)) {
    nlattr head{};
    std::memcpy(&head, attributes.data(), sizeof head);
    if (head.nla_len < NLA_HDRLEN || head.nla_len > attributes.size()) return {};
    if ((head.nla_type & NLA_TYPE_MASK) == type) {
      return attributes.subspan(NLA_HDRLEN, head.nla_len - NLA_HDRLEN);
    }
    attributes = attributes.subspan(std::min<size_t>(NLA_ALIGN(head.nla_len), attributes.size()));
  }
  return {};
}

std::span<const std::byte> AttributesOf(std::span<const std::byte> message, size_t header_bytes) {
  const size_t fixed_bytes = NLMSG_HDRLEN + NLMSG_ALIGN(header_bytes);
  return message.size() <= fixed_bytes ? std::span<const std::byte>() : message.subspan(fixed_bytes);
}

}  // namespace holdfast
