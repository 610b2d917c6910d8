"""Adding vectors of several sites so that only the total means anything. No transport, no files.

The protocol is that of Bonawitz et al. (2017, CCS, "Practical secure aggregation", figure 4, the variant against an active server) with the sparse
graph of Bell et al. (2020, CCS). Reading order: :mod:`.terms` (what every site knows before it speaks), :mod:`.site` (what a site says and refuses),
:mod:`.relay` (what the coordinator does with it); :mod:`.shamir`, :mod:`.masks` and :mod:`.graph` are the parts they are made of.

**Who learns what.** The total of the survivors' vectors, and no function of them but the total, reaches the coordinator, even when up to
``colluding`` sites (the study's ``tolerated_dropouts``) tell it all they know and it lies about who is there: each site reveals shares for one set of
survivors only, a set that more than half of the sites (and half of the colluders more) have signed, that holds the quorum, and that stays joined by
masks when any ``colluding`` of its members are taken away. From the total the colluders can take off their own vectors, noise included; at least
``quorum - colluding`` honest shares of noise remain, which is what epsilon against researchers is priced for.

**Why nothing else opens.** An honest survivor's own mask takes shares from more than ``colluding`` neighbours (or itself), so an honest one of them
revealed its share. That one had signed the set, and had seen the survivor's signature under the very sites that it was itself told of when it masked;
the set is among these, so the survivor's vector carries a mask for each of its neighbours in the set. Such a mask between two honest survivors is
known to neither coordinator nor colluders, as no key of a survivor is revealed: whoever uses one of the two vectors needs the other, and so on to
every honest site of the joined set. A name in it that never masked is a neighbour without a vector, and nothing opens.

**What is not promised.** With more colluders than that the claim against researchers does not hold for what they see: they may obtain any site's
vector with its own share of noise alone, whose epsilon is the one stated against the coordinator. Sums can be spoilt by any site, and a run stopped
by the coordinator: the protocol keeps secrets, it does not make anybody honest. Keys of masks are X25519 and fresh for each step, so a site's
identity key that leaks later opens no earlier sum.
"""
