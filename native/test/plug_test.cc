// The gate `plug`: every request byte by byte, what is read from answers, and on
// this kernel the detour that frames take, in a network namespace of the test's own.

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/tc_act/tc_mirred.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <arpa/inet.h>

#include "base/thread.h"
#include "output/plug.h"
#include "test/lab.h"

namespace holdfast::test {
namespace {

const Libnl& Library() {
  const auto libnl = Libnl::Load();
  CHECK_OK(libnl);
  return *libnl.value();
}

// A netlink request as the kernel's headers describe it, put together without libnl.
class Expected {
 public:
  template <typename Header>
  Expected(uint16_t type, uint16_t flags, const Header& header) {
    Append(nlmsghdr{.nlmsg_len = 0, .nlmsg_type = type, .nlmsg_flags = flags, .nlmsg_seq = 0,
                    .nlmsg_pid = 0});
    Append(header);
  }
  template <typename Payload>
  Expected& Put(uint16_t type, const Payload& payload) {
    const size_t start = Begin(type);
    Append(payload);
    return End(start);
  }
  Expected& Text(uint16_t type, const std::string& text) {
    const size_t start = Begin(type);
    for (const char letter : text) bytes_.push_back(static_cast<std::byte>(letter));
    bytes_.push_back({});
    return End(start);
  }
  size_t Begin(uint16_t type) {
    const size_t start = bytes_.size();
    Append(nlattr{.nla_len = 0, .nla_type = type});
    return start;
  }
  Expected& End(size_t start) {
    const auto length = static_cast<uint16_t>(bytes_.size() - start);
    std::memcpy(&bytes_[start], &length, sizeof length);
    bytes_.resize(NLA_ALIGN(bytes_.size()));
    return *this;
  }
  Bytes Message() const {
    Bytes message = bytes_;
    const auto length = static_cast<uint32_t>(message.size());
    std::memcpy(message.data(), &length, sizeof length);
    return message;
  }

 private:
  template <typename T>
  void Append(const T& value) {
    const size_t start = bytes_.size();
    bytes_.resize(start + sizeof value);
    std::memcpy(&bytes_[start], &value, sizeof value);
  }
  Bytes bytes_;
};

std::string Hex(const Bytes& bytes) {
  std::string text;
  char digits[4];
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::snprintf(digits, sizeof digits, "%02x%s", static_cast<unsigned>(bytes[i]),
                  i % 4 == 3 ? " " : "");
    text += digits;
  }
  return text;
}

void CheckBytes(const Result<NetlinkMessage>& message, const Expected& expected, int line) {
  CHECK_OK(message);
  const nlmsghdr* header = Library().nlmsg_hdr(message.value().get());
  const auto* first = reinterpret_cast<const std::byte*>(header);
  const std::string got = Hex(Bytes(first, first + header->nlmsg_len));
  const std::string wanted = Hex(expected.Message());
  if (got != wanted) Fail(__FILE__, line, "the request is\n  " + got + "\nexpected\n  " + wanted);
}
#define CHECK_BYTES(message, expected) CheckBytes(message, expected, __LINE__)

constexpr uint16_t kCreate = NLM_F_CREATE | NLM_F_EXCL;
constexpr int kTap = 7;
constexpr int kIfb = 9;

tcmsg Qdisc(int link, uint32_t parent, uint32_t handle) {
  tcmsg header{};
  header.tcm_ifindex = link;
  header.tcm_parent = parent;
  header.tcm_handle = handle;
  return header;
}

ifinfomsg Link(int index, unsigned flags = 0) {
  ifinfomsg header{};
  header.ifi_index = index;
  header.ifi_flags = flags;
  header.ifi_change = flags;
  return header;
}

constexpr uint16_t Nested(uint16_t type) { return NLA_F_NESTED | type; }

TEST("requests about links") {
  const PlugMessages messages(Library());
  Expected add(RTM_NEWLINK, kCreate, Link(0));
  add.Put(IFLA_TXQLEN, uint32_t{1024}).Text(IFLA_IFNAME, "hf-0123456789ab");
  const size_t info = add.Begin(Nested(IFLA_LINKINFO));
  add.Text(IFLA_INFO_KIND, "ifb").End(info);
  CHECK_BYTES(messages.AddIfb("hf-0123456789ab"), add);
  CHECK_BYTES(messages.SetLinkUp(kIfb), Expected(RTM_NEWLINK, 0, Link(kIfb, IFF_UP)));
  CHECK_BYTES(messages.SetAlias(kIfb, "ours"),
              Expected(RTM_NEWLINK, 0, Link(kIfb)).Text(IFLA_IFALIAS, "ours"));
  CHECK_BYTES(messages.DeleteLink(kIfb), Expected(RTM_DELLINK, 0, Link(kIfb)));
}

TEST("a plug qdisc is made with its limit, and holds at once") {
  const PlugMessages messages(Library());
  const tc_plug_qopt options{.action = TCQ_PLUG_BUFFER, .limit = 64 << 20};
  CHECK_BYTES(messages.AddPlug(kIfb, 64 << 20),
              Expected(RTM_NEWQDISC, kCreate, Qdisc(kIfb, TC_H_ROOT, 0x48460000))
                  .Text(TCA_KIND, "plug")
                  .Put(Nested(TCA_OPTIONS), options));
}

TEST("boundary, release and opening change the qdisc that is there, and never make one") {
  const PlugMessages messages(Library());
  for (const auto& [action, number] :
       {std::pair{PlugAction::kBuffer, TCQ_PLUG_BUFFER},
        std::pair{PlugAction::kReleaseOne, TCQ_PLUG_RELEASE_ONE},
        std::pair{PlugAction::kReleaseIndefinite, TCQ_PLUG_RELEASE_INDEFINITE}}) {
    const tc_plug_qopt options{.action = number, .limit = 0};
    CHECK_BYTES(messages.ChangePlug(kIfb, action),
                Expected(RTM_NEWQDISC, 0, Qdisc(kIfb, TC_H_ROOT, 0x48460000))
                    .Text(TCA_KIND, "plug")
                    .Put(Nested(TCA_OPTIONS), options));
  }
}

TEST("an ingress qdisc, and its removal") {
  const PlugMessages messages(Library());
  CHECK_BYTES(messages.AddIngress(kTap),
              Expected(RTM_NEWQDISC, kCreate, Qdisc(kTap, TC_H_INGRESS, 0xffff0000))
                  .Text(TCA_KIND, "ingress"));
  CHECK_BYTES(messages.DeleteIngress(kTap),
              Expected(RTM_DELQDISC, 0, Qdisc(kTap, TC_H_INGRESS, 0xffff0000))
                  .Text(TCA_KIND, "ingress"));
}

TEST("the filter takes every frame and steals it for the ifb") {
  const PlugMessages messages(Library());
  tcmsg header = Qdisc(kTap, 0xffff0000, 0);
  header.tcm_info = TC_H_MAKE(1 << 16, htons(ETH_P_ALL));
  Expected expected(RTM_NEWTFILTER, kCreate, header);
  expected.Text(TCA_KIND, "u32");
  const size_t options = expected.Begin(Nested(TCA_OPTIONS));
  std::array<uint8_t, sizeof(tc_u32_sel) + sizeof(tc_u32_key)> match{};
  match[offsetof(tc_u32_sel, flags)] = TC_U32_TERMINAL;
  match[offsetof(tc_u32_sel, nkeys)] = 1;  // of mask 0: matches anything
  expected.Put(TCA_U32_SEL, match);
  const size_t actions = expected.Begin(Nested(TCA_U32_ACT));
  const size_t first = expected.Begin(Nested(1));
  expected.Text(TCA_ACT_KIND, "mirred");
  const size_t redirect = expected.Begin(Nested(TCA_ACT_OPTIONS));
  tc_mirred mirred{};
  mirred.action = TC_ACT_STOLEN;
  mirred.eaction = TCA_EGRESS_REDIR;
  mirred.ifindex = kIfb;
  expected.Put(TCA_MIRRED_PARMS, mirred);
  expected.End(redirect).End(first).End(actions).End(options);
  CHECK_BYTES(messages.AddRedirect(kTap, kIfb), expected);
}

TEST("the ifb's name follows from the tap's, and fits") {
  CHECK(TapDetour::IfbName("tap0") == TapDetour::IfbName("tap0"));
  CHECK(TapDetour::IfbName("tap0") != TapDetour::IfbName("tap1"));
  for (const char* tap : {"", "tap0", "vnet12345678901"}) {
    CHECK_EQ(TapDetour::IfbName(tap).size(), size_t{15});  // IFNAMSIZ with its NUL
  }
}

TEST("attributes of an answer: found, absent, damaged") {
  Expected message(RTM_NEWQDISC, 0, tcmsg{});
  message.Text(TCA_KIND, "plug").Put(TCA_HW_OFFLOAD, uint8_t{1}).Put(Nested(TCA_STATS2), 77u);
  const Bytes bytes = message.Message();
  const auto attributes = AttributesOf(bytes, sizeof(tcmsg));
  CHECK_EQ(FindAttribute(attributes, TCA_KIND).size(), size_t{5});
  CHECK_EQ(FindAttribute(attributes, TCA_STATS2).size(), sizeof(unsigned));
  CHECK(FindAttribute(attributes, TCA_RATE).empty());
  // Cut anywhere, it reads no further than there is.
  for (size_t length = 0; length <= bytes.size(); ++length) {
    const Bytes cut(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length));
    CHECK(FindAttribute(AttributesOf(cut, sizeof(tcmsg)), TCA_RATE).empty());
  }
  Bytes damaged = bytes;
  damaged[NLMSG_HDRLEN + sizeof(tcmsg)] = std::byte{1};  // a length below the header's own
  CHECK(FindAttribute(AttributesOf(damaged, sizeof(tcmsg)), TCA_STATS2).empty());
}

// Of the range for local experiments: nobody else answers it.
constexpr uint16_t kProtocol = 0x88b5;

// A tap with somebody who listens behind it, in a network namespace of the calling thread's own.
class TapLab {
 public:
  // `bridge`: has the tap as its port, and is where frames are to arrive.
  explicit TapLab(const char* name, const char* bridge = nullptr) : messages(Library()), socket_(OpenSocket()) {
    tap_ = Descriptor(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    ifreq request{};
    std::snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    CHECK_EQ(::ioctl(tap_.get(), TUNSETIFF, &request), 0);
    TapDetour detour(messages, socket_, name);
    const auto link = detour.Link(name);
    CHECK_OK(link);
    index_ = link.value()->index;
    CHECK_OK(ExecuteBuilt(messages, socket_, messages.SetLinkUp(index_), "up"));
    int arrival = index_;
    if (bridge != nullptr) {
      const std::string made = std::string("ip link add ") + bridge +
                               " type bridge forward_delay 0 stp_state 0 && ip link set " + name +
                               " master " + bridge + " && ip link set " + bridge + " up";
      CHECK_EQ(std::system(made.c_str()), 0);
      const auto found = detour.Link(bridge);
      CHECK_OK(found);
      arrival = found.value()->index;
    }
    listener_ = Descriptor(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(kProtocol)));
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(kProtocol);
    address.sll_ifindex = arrival;
    CHECK_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }

  void Send(uint8_t number) { CHECK(TrySend(number)); }
  // False: the tap takes no more for now, and its writer would wait.
  bool TrySend(uint8_t number) {
    std::array<uint8_t, 64> frame{};
    std::fill_n(frame.begin(), 6, 0xff);
    frame[6] = 0x02;
    frame[12] = kProtocol >> 8;
    frame[13] = kProtocol & 0xff;
    frame[14] = number;
    const ssize_t written = ::write(tap_.get(), frame.data(), frame.size());
    if (written < 0 && errno == EAGAIN) return false;
    CHECK_EQ(written, ssize_t{64});
    return true;
  }
  // As -netdev tap,sndbuf= does.
  void BoundTo(int bytes) { CHECK_EQ(::ioctl(tap_.get(), TUNSETSNDBUF, &bytes), 0); }
  // Of the next frame that gets past the tap; -1 if none does within the time.
  int Receive(int timeout_ms = kDeadlineMs) {
    pollfd ready{.fd = listener_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, timeout_ms) <= 0) return -1;
    std::array<uint8_t, 128> frame{};
    CHECK_EQ(::recv(listener_.get(), frame.data(), frame.size(), 0), ssize_t{64});
    return frame[14];
  }
  NetlinkSocket& socket() { return socket_; }
  int index() const { return index_; }

  const PlugMessages messages;

 private:
  static NetlinkSocket OpenSocket() {
    CHECK_EQ(::unshare(CLONE_NEWNET), 0);
    auto socket = NetlinkSocket::Open();
    CHECK_OK(socket);
    return std::move(socket).value();
  }

  NetlinkSocket socket_;
  Descriptor tap_;
  Descriptor listener_;
  int index_ = 0;
};

// A namespace of its own for each: it goes with its thread.
template <typename Body>
void InNamespace(Body body) {
  Thread thread("plug-test", body);
  thread.Join();
}

constexpr int kAMomentMs = 100;
using State = TapDetour::State;

void CheckState(TapDetour& detour, State expected) {
  const auto state = detour.Find();
  CHECK_OK(state);
  CHECK_EQ(static_cast<int>(state.value()), static_cast<int>(expected));
}

void CheckDetour(const char* behind) {
  InNamespace([behind] {
    TapLab lab("tap7", behind);
    TapDetour detour(lab.messages, lab.socket(), "tap7");
    CheckState(detour, State::kAbsent);
    lab.Send(1);
    CHECK_EQ(lab.Receive(), 1);
    CHECK_OK(detour.Create());
    CheckState(detour, State::kUnfinished);
    CHECK_OK(detour.Divert());
    CheckState(detour, State::kComplete);
    const std::string ifb = TapDetour::IfbName("tap7");
    const auto before = detour.Link(ifb);
    CHECK_OK(before);
    for (uint8_t number = 10; number < 60; ++number) lab.Send(number);
    for (int number = 10; number < 60; ++number) CHECK_EQ(lab.Receive(), number);
    const auto after = detour.Link(ifb);
    CHECK_OK(after);
    CHECK_EQ(after.value()->sent_frames - before.value()->sent_frames, uint64_t{50});
    CHECK(after.value()->kind == "ifb");

    CHECK_OK(detour.MarkOpening());
    CheckState(detour, State::kOpening);
    CHECK_OK(detour.StopDiverting());
    lab.Send(2);
    CHECK_EQ(lab.Receive(), 2);
    const auto drained = detour.Drained(kDeadlineMs);
    CHECK_OK(drained);
    CHECK(drained.value());
    CHECK_OK(detour.Delete());
    CheckState(detour, State::kAbsent);
    lab.Send(3);
    CHECK_EQ(lab.Receive(), 3);
    CHECK_EQ(lab.Receive(0), -1);
  });
}

TEST("frames take the detour, in order, and the tap is then as it was") { CheckDetour(nullptr); }

TEST("so they do where the tap is a bridge's port") { CheckDetour("br7"); }

TEST("what the ifb's qdisc holds is counted, and not drained") {
  InNamespace([] {
    TapLab lab("tap7");
    TapDetour detour(lab.messages, lab.socket(), "tap7");
    CheckState(detour, State::kAbsent);
    CHECK_OK(detour.Create());
    // Every kernel has one that holds: a bucket for one frame, refilled with the next after seconds.
    const std::string bucket = "tc qdisc add dev " + TapDetour::IfbName("tap7") +
                               " root tbf rate 100bit burst 100b limit 500b";
    CHECK_EQ(std::system(bucket.c_str()), 0);
    CHECK_OK(detour.Divert());
    for (uint8_t number = 0; number < 20; ++number) lab.Send(number);
    const auto drained = detour.Drained(0);
    CHECK_OK(drained);
    CHECK(!drained.value());
    const auto held = FindQdisc(lab.socket(), detour.ifb(), TC_H_ROOT);
    CHECK_OK(held);
    CHECK(held.value()->kind == "tbf");
    CHECK(held.value()->held_frames > 0);
    CHECK_EQ(held.value()->held_bytes, held.value()->held_frames * 64);
    CHECK(held.value()->dropped_frames > 0);
    CHECK_OK(detour.StopDiverting());
    CHECK_OK(detour.Delete());
  });
}

TEST("what is held counts against the tap's sndbuf, so that QEMU waits before anything is dropped") {
  InNamespace([] {
    TapLab lab("tap7");
    TapDetour detour(lab.messages, lab.socket(), "tap7");
    CheckState(detour, State::kAbsent);
    CHECK_OK(detour.Create());
    const std::string bucket = "tc qdisc add dev " + TapDetour::IfbName("tap7") +
                               " root tbf rate 100bit burst 100b limit 1mb";
    CHECK_EQ(std::system(bucket.c_str()), 0);
    CHECK_OK(detour.Divert());
    lab.BoundTo(64 << 10);
    int taken = 0;
    while (taken < 10'000 && lab.TrySend(0)) ++taken;
    CHECK(taken > 10 && taken < 1'000);
    const auto held = FindQdisc(lab.socket(), detour.ifb(), TC_H_ROOT);
    CHECK_OK(held);
    CHECK_EQ(held.value()->dropped_frames, uint64_t{0});
    CHECK_OK(detour.StopDiverting());
    CHECK_OK(detour.Delete());  // gives back what they took
    CHECK(lab.TrySend(1));
  });
}

TEST("what is not ours is left alone") {
  InNamespace([] {
    TapLab lab("tap7");
    TapDetour detour(lab.messages, lab.socket(), "tap7");
    CHECK_EQ(std::system("tc qdisc add dev tap7 clsact"), 0);
    CHECK_ERROR(detour.Find(), ErrorCode::kUnsupported, "somebody else has a qdisc");
    auto plug = Plug::Open({"tap7"}, 1 << 20);
    CHECK_OK(plug);
    CHECK_ERROR(plug.value()->Adopt(), ErrorCode::kUnsupported, "(clsact)");
    CHECK_ERROR(plug.value()->Install(), ErrorCode::kUnsupported, "(clsact)");
    const auto kept = FindQdisc(lab.socket(), lab.index(), TC_H_INGRESS);
    CHECK_OK(kept);
    CHECK(kept.value().has_value());
    CHECK_EQ(std::system("tc qdisc del dev tap7 clsact"), 0);
    CheckState(detour, State::kAbsent);

    const std::string foreign = "ip link add " + TapDetour::IfbName("tap7") + " type veth";
    CHECK_EQ(std::system(foreign.c_str()), 0);
    CHECK_ERROR(detour.Find(), ErrorCode::kUnsupported, "is not ours");
    auto elsewhere = Plug::Open({"tap8"}, 1 << 20);
    CHECK_OK(elsewhere);
    CHECK_ERROR(elsewhere.value()->Adopt(), ErrorCode::kUnsupported, "no network device tap8");
  });
}

TEST("remains of a making that was cut short are removed, and nothing is adopted") {
  InNamespace([] {
    TapLab lab("tap7");
    TapDetour detour(lab.messages, lab.socket(), "tap7");
    for (const bool diverted : {false, true}) {
      CheckState(detour, State::kAbsent);
      CHECK_OK(detour.Create());
      if (diverted) CHECK_OK(detour.Divert());  // complete, but nothing there that could hold
      auto plug = Plug::Open({"tap7"}, 1 << 20);
      CHECK_OK(plug);
      const auto adopted = plug.value()->Adopt();
      CHECK_OK(adopted);
      CHECK(!adopted.value());
      CheckState(detour, State::kAbsent);
      lab.Send(5);
      CHECK_EQ(lab.Receive(), 5);
    }
  });
}

// The whole gate where the kernel has the qdisc. Where it doesn't: that it says so and changes
// nothing; test/e2e/plug.test.ts then counts the rest as skipped.
TEST("the plug qdisc holds until released, or is missed clearly") {
  InNamespace([] {
    const PlugProbe probe = ProbePlug();
    TapLab lab("tap7");
    TapDetour detour(lab.messages, lab.socket(), "tap7");
    auto opened = Plug::Open({"tap7"}, 1 << 20);
    CHECK_OK(opened);
    Plug& plug = *opened.value();
    if (!probe.lacks.empty()) {
      CHECK(probe.lacks == "qdisc");
      CHECK(probe.reason.find("CONFIG_NET_SCH_PLUG") != std::string::npos);
      CHECK_ERROR(plug.Install(), ErrorCode::kUnsupported, "CONFIG_NET_SCH_PLUG");
      CheckState(detour, State::kAbsent);
      CHECK_ERROR(plug.Change(PlugAction::kBuffer), ErrorCode::kSyscall, "is gone");
      CHECK_OK(plug.Remove());
      lab.Send(6);
      CHECK_EQ(lab.Receive(), 6);
      return;
    }
    CHECK_OK(plug.Install());
    lab.Send(1);
    lab.Send(2);
    CHECK_OK(plug.Change(PlugAction::kBuffer));
    lab.Send(3);
    CHECK_EQ(lab.Receive(kAMomentMs), -1);
    const auto held = plug.Change(PlugAction::kReleaseOne);
    CHECK_OK(held);
    CHECK(held.value().held_frames >= 3);
    CHECK_EQ(lab.Receive(), 1);
    CHECK_EQ(lab.Receive(), 2);
    CHECK_EQ(lab.Receive(kAMomentMs), -1);
    // Another process after this one.
    auto next = Plug::Open({"tap7"}, 1 << 20);
    CHECK_OK(next);
    const auto adopted = next.value()->Adopt();
    CHECK_OK(adopted);
    CHECK(adopted.value());
    CHECK_OK(next.value()->Remove());
    CHECK_EQ(lab.Receive(), 3);
    CheckState(detour, State::kAbsent);
  });
}

TEST("a probe leaves no descriptor") {
  const int before = OpenDescriptors();
  ProbePlug();
  CHECK_EQ(OpenDescriptors(), before);
}

}  // namespace
}  // namespace holdfast::test

int main(int argc, char** argv) { return holdfast::test::RunAll(argc, argv); }
