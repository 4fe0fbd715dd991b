/** What one machine can show, in the words of the report and of docs/benchmarks.md. */
export const conclusions: readonly string[] = [
  'Ratios within one run hold on this machine; absolute times vary between runs by half, since it is shared and virtual.',
  'Both hosts, the client and the guest share its cores, so the sender, the receiver, the standby and the guest compete with each other; two real hosts would not.',
  'Nothing here says anything about a NIC: the replication link is a veth pair, which has no wire, hands sendfile’s and splice’s pages on by reference, and copies what MSG_ZEROCOPY and SEND_ZC send. A NIC would not copy it; the column of copied bytes shows where that happened.',
  'KVM guests pause like TCG guests as far as Holdfast is concerned (QMP, scan, copy); their dirty rate is higher, and their share of lost work differs, since a TCG guest runs its own code far slower.',
];
