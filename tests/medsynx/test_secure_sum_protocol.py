"""The secure sum's protocol, played between real sessions without transport: totals, drop-outs, and what a site refuses."""

from __future__ import annotations

import base64
import copy
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medsynx.errors import MedsynxError
from medsynx.secure_sum import graph as graphs
from medsynx.secure_sum import masks, shamir
from medsynx.secure_sum.graph import Graph, density, majority
from medsynx.secure_sum.relay import Relay, TooFew
from medsynx.secure_sum.ring import RING
from medsynx.secure_sum.site import Session
from medsynx.secure_sum.terms import Terms, advert_statement, graph, survivors_needed, text, transcript


class Party:
    """Sites with identity keys, a vector each, and a relay between them."""

    def __init__(self, n: int, quorum: int, colluding: int = 0, size: int = 50) -> None:
        names = [f"s{k:03d}" for k in range(n)]
        self.keys = {s: Ed25519PrivateKey.generate() for s in names}
        self.roster = {s: k.public_key().public_bytes_raw() for s, k in self.keys.items()}
        self.quorum, self.colluding = quorum, colluding
        rng = np.random.default_rng(n)
        self.vectors = {s: rng.integers(-(2**30), 2**30, size) for s in names}
        self.sites = {s: Session(self.terms(), s, {}) for s in names}
        self.relay = Relay(quorum, colluding, RING)
        self.sent: dict[str, np.ndarray] = {}
        self.said: dict[str, dict] = {}

    def terms(self, **changes) -> Terms:
        return Terms(
            **{"study": "d" * 64, "run": "r", "step": "tables", "roster": self.roster}
            | {"quorum": self.quorum, "colluding": self.colluding}
            | changes
        )

    def sign(self, site: str):
        return self.keys[site].sign

    def advert(self, gone=()):
        return self.relay.advertised({s: x.advert(self.sign(s)) for s, x in self.sites.items() if s not in gone})

    def share(self, letters, gone=()):
        return self.relay.shared({s: self.sites[s].share(m) for s, m in letters.items() if s not in gone})

    def mask(self, letters, gone=()):
        for s, m in letters.items():
            if s not in gone:
                mask = self.sites[s].accept(m, self.sign(s))
                self.sent[s], self.said[s] = mask(RING.encode(self.vectors[s])), mask.message
        return self.relay.masked(self.said)

    def confirm(self, letters, gone=()):
        return self.relay.confirmed(
            {s: self.sites[s].confirm(m, self.sign(s)) for s, m in letters.items() if s not in gone}
        )

    def unmask(self, letters, gone=()):
        answers = {s: self.sites[s].unmask(m) for s, m in letters.items() if s not in gone}
        return RING.decode(self.relay.total(sum(self.sent[s] for s in self.relay.survivors), answers))

    def play(self, gone: dict[str, tuple[str, ...]] | None = None) -> np.ndarray:
        gone, letters, out = gone or {}, self.advert((gone or {}).get("advert", ())), set()
        for exchange in ("share", "mask", "confirm", "unmask"):
            out |= set(gone.get(exchange, ()))
            letters = getattr(self, exchange)(letters, out)
        return letters

    def plain(self, sites) -> np.ndarray:
        return sum(self.vectors[s] for s in sites)


def refuses(call, *told) -> str:
    with pytest.raises(MedsynxError) as refusal:
        call(*told)
    assert refusal.value.code == "secure-sum-refused"
    return refusal.value.message


@pytest.mark.parametrize("n,quorum,colluding", [(3, 3, 0), (4, 3, 1), (10, 8, 2), (40, 30, 3)])
def test_the_total_is_exact(n, quorum, colluding):
    party = Party(n, quorum, colluding)
    assert (party.play() == party.plain(party.sites)).all()


@pytest.mark.parametrize("exchange", ["advert", "share", "mask", "confirm", "unmask"])
def test_sites_may_drop_out_at_any_exchange(exchange):
    party = Party(10, 7, 1)
    gone = ("s002", "s007", "s009")
    total = party.play({exchange: gone})
    stay = [s for s in party.sites if s not in gone or exchange in ("confirm", "unmask")]
    assert party.relay.survivors == stay and (total == party.plain(stay)).all()


def test_sites_may_drop_out_one_after_another():
    party = Party(10, 6, 0)
    total = party.play(
        {"advert": ("s000",), "share": ("s001",), "mask": ("s002",), "confirm": ("s003",), "unmask": ("s004",)}
    )
    assert (total == party.plain([s for s in party.sites if s > "s002"])).all()


@pytest.mark.parametrize("exchange", ["advert", "share", "mask", "confirm"])
def test_below_the_quorum_nothing_is_unmasked(exchange):
    party = Party(5, 4, 0)
    with pytest.raises(TooFew):
        party.play({exchange: ("s000", "s001", "s002")})


def test_many_sites_are_a_sparse_graph_with_drop_outs():
    party = Party(80, 60, 3, size=8)
    gone = tuple(f"s{k:03d}" for k in range(0, 80, 7))
    total = party.play({"mask": gone})
    assert not party.relay._graph.complete
    assert (total == party.plain([s for s in party.sites if s not in gone])).all()


def test_a_state_survives_as_json_between_any_two_exchanges():
    """What a site keeps is written down between its answers, which separate processes give."""
    party = Party(4, 3)
    letters = party.advert()
    for exchange in ("share", "mask", "confirm", "unmask"):
        party.sites = {s: Session(party.terms(), s, json.loads(json.dumps(x.state))) for s, x in party.sites.items()}
        letters = getattr(party, exchange)(letters)
    assert (letters == party.plain(party.sites)).all()


def test_the_state_forgets():
    """After masking neither secret of the site itself is left, after unmasking nothing is."""
    party = Party(4, 3)
    shared = party.share(party.advert())
    secret = [party.sites["s000"].state[k] for k in ("own", "mask_key", "box_key")]
    letters = party.mask(shared)
    assert not any(s in json.dumps(party.sites["s000"].state) for s in secret)
    party.unmask(party.confirm(letters))
    assert all(x.state == {"stage": "done"} for x in party.sites.values())


def test_a_masked_vector_looks_uniform_and_never_repeats():
    first, second = Party(3, 3, size=20_000), Party(3, 3, size=20_000)
    for party in (first, second):
        party.vectors = {s: np.zeros(20_000, np.int64) for s in party.sites}
        party.play()
    masked = first.sent["s000"] & np.uint64(2**40 - 1)
    counts = np.bincount((masked >> np.uint64(32)).astype(int), minlength=256)
    assert ((counts - 20_000 / 256) ** 2).sum() / (20_000 / 256) < 255 + 6 * np.sqrt(2 * 255)
    assert len(set(masked.tolist())) >= 19_998, "two of 20,000 numbers of 40 bits are alike in one run of 5,000"
    assert (first.sent["s000"] != second.sent["s000"]).all()


def test_all_but_one_mask_leaves_it_uniform():
    """A coordinator with every pairwise seed but one, or without the own mask alone, still has a uniform vector."""
    party = Party(4, 3)
    party.share(party.advert())
    session = party.sites["s000"]
    told = {
        "present": sorted(party.sites),
        "boxes": {s: party.relay._boxes[s]["s000"] for s in party.sites if s != "s000"},
    }
    mask = session.accept(told, party.sign("s000"))
    sent = mask(np.zeros(50, np.uint64))
    for missing in (mask.own, *mask.pairs):
        rest = sent.copy()
        if missing != mask.own:
            masks.mask(rest, mask.own, add=False)
        for seed, add in mask.pairs.items():
            if seed != missing:
                masks.mask(rest, seed, add=not add)
        assert np.count_nonzero(rest) > 45
        masks.mask(rest, missing, add=not mask.pairs.get(missing, True))
        assert not rest.any(), "and with it nothing but the vector is left"


# ------------------------------------------------------------------------------------------------------------------ refusals


def at(exchange: str, n=5, quorum=4, colluding=0):
    """A party just before an exchange, and the letters for it."""
    party = Party(n, quorum, colluding)
    letters = party.advert()
    for name in ("share", "mask", "confirm", "unmask"):
        if name == exchange:
            return party, letters
        letters = getattr(party, name)(letters)
    raise AssertionError


@pytest.mark.parametrize("exchange", ["share", "mask", "confirm", "unmask"])
def test_exchanges_out_of_order_are_refused(exchange):
    party, letters = at(exchange)
    site, told = party.sites["s000"], letters["s000"]
    calls = {
        "share": lambda: site.share(told),
        "mask": lambda: site.accept(told, party.sign("s000")),
        "confirm": lambda: site.confirm(told, party.sign("s000")),
        "unmask": lambda: site.unmask(told),
    }
    for other, call in calls.items():
        if other != exchange:
            before = copy.deepcopy(site.state)
            refuses(call)
            assert site.state == before
    calls[exchange]()
    refuses(calls[exchange])  # and each is answered once


def test_a_tag_is_masked_once():
    """Before a vector left a site may start over, with fresh keys; afterwards never."""
    party, letters = at("mask")
    site = party.sites["s000"]
    first = site.state["mask_key"]
    site.advert(party.sign("s000"))
    assert site.state["mask_key"] != first
    for exchange in ("confirm", "unmask"):
        party, letters = at(exchange)
        refuses(party.sites["s000"].advert, party.sign("s000"))
    party.unmask(letters)
    refuses(party.sites["s000"].advert, party.sign("s000"))


def test_keys_of_a_coordinator_in_the_middle_are_refused():
    party, letters = at("share")
    for key in ("mask_key", "box_key"):
        told = copy.deepcopy(letters["s000"])
        told["adverts"]["s001"][key] = text(masks.public_key(masks.new_key()))
        refuses(party.sites["s000"].share, told)


def test_a_forged_advert_of_a_site_that_is_no_neighbour_is_refused_too():
    """It would count for the quorum and bring no noise."""
    party = Party(60, 40)
    letters = party.advert()
    for s in sorted(party.sites)[1:]:
        told = copy.deepcopy(letters["s000"])
        told["adverts"][s]["box_key"] = text(masks.public_key(masks.new_key()))
        salt = transcript(party.terms().tag, told["adverts"])
        if s not in graph(told["adverts"], salt, 40, 0).neighbours("s000"):
            break
    assert "signed" in refuses(party.sites["s000"].share, told)


@pytest.mark.parametrize(
    "change", [{"run": "other"}, {"step": "other"}, {"study": "e" * 64}, {"quorum": 3}, {"colluding": 1}]
)
def test_an_advert_of_other_terms_is_refused(change):
    party, letters = at("share")
    other = Session(party.terms(**change), "s001", {}).advert(party.sign("s001"))
    told = copy.deepcopy(letters["s000"])
    told["adverts"]["s001"] = other
    refuses(party.sites["s000"].share, told)


def test_one_key_under_two_names_or_a_key_that_gives_no_secret_is_refused():
    """Whatever its owner signed. Base64 of 32 bytes ends in two idle bits: one key could be spelled in four ways."""
    party, letters = at("share")
    key = letters["s000"]["adverts"]["s002"]["mask_key"]
    spelled = key[:-2] + chr(ord(key[-2]) + 1) + "="
    assert base64.b64decode(spelled, validate=True) == base64.b64decode(key)
    for changed in ({"mask_key": key}, {"mask_key": spelled}, {"box_key": text(bytes(32))}):
        told = copy.deepcopy(letters["s000"])
        advert = told["adverts"]["s001"] = {**told["adverts"]["s001"], **changed}
        advert["signature"] = text(party.sign("s001")(advert_statement(party.terms().tag, "s001", advert)))
        refuses(party.sites["s000"].share, told)


def test_sites_outside_the_roster_are_refused():
    party, letters = at("share")
    stranger = Ed25519PrivateKey.generate()
    roster = {**party.roster, "sybil": stranger.public_key().public_bytes_raw()}
    told = copy.deepcopy(letters["s000"])
    told["adverts"]["sybil"] = Session(party.terms(roster=roster), "sybil", {}).advert(stranger.sign)
    assert "roster" in refuses(party.sites["s000"].share, told)


def test_a_site_with_another_roster_is_named_and_left_out():
    party = Party(5, 4)
    changed = {**party.roster, "s004": Ed25519PrivateKey.generate().public_key().public_bytes_raw()}
    party.sites["s003"] = Session(party.terms(roster=changed), "s003", {})
    total = party.play()
    assert party.relay.faulty == {"s003": "roster-mismatch"}
    assert (total == party.plain(["s000", "s001", "s002", "s004"])).all()


def test_a_shrunk_roster_is_refused():
    party, letters = at("share")
    told = {"adverts": {s: letters["s000"]["adverts"][s] for s in ("s000", "s001", "s002")}}
    assert "too few" in refuses(party.sites["s000"].share, told)
    party, letters = at("mask")
    present = ["s000", "s001", "s002"]
    told = {"present": present, "boxes": {s: letters["s000"]["boxes"][s] for s in present[1:]}}
    assert "too few" in refuses(party.sites["s000"].accept, told, party.sign("s000"))


def test_never_fewer_than_three():
    party = Party(2, 2)
    with pytest.raises(TooFew):
        party.play()
    party = Party(3, 2)
    with pytest.raises(TooFew):
        party.play({"mask": ("s001",)})


def test_boxes_of_others_are_refused():
    party, letters = at("mask")
    told = copy.deepcopy(letters["s000"])
    told["boxes"]["s001"], told["boxes"]["s002"] = told["boxes"]["s002"], told["boxes"]["s001"]
    assert "sealed" in refuses(party.sites["s000"].accept, told, party.sign("s000"))
    told = copy.deepcopy(letters["s000"])
    told["boxes"]["s001"] = letters["s001"]["boxes"]["s000"]
    assert "sealed" in refuses(party.sites["s000"].accept, told, party.sign("s000")), (
        "its own box for a neighbour is not that neighbour's"
    )
    assert party.sites["s000"].state["stage"] == "shared"


def test_sites_shown_different_adverts_share_no_key():
    """s000 is told of five sites, the others of four: no box of theirs opens."""
    party, letters = at("share", n=6, quorum=3)
    told = {"adverts": {s: a for s, a in letters["s000"]["adverts"].items() if s != "s005"}}
    own = party.sites["s000"].share(told)
    answers = {s: party.sites[s].share(letters[s]) for s in letters if s != "s000"}
    boxes = {s: answers[s]["boxes"]["s000"] for s in answers if s != "s005"}
    refuses(party.sites["s000"].accept, {"present": sorted(told["adverts"]), "boxes": boxes}, party.sign("s000"))
    assert set(own["boxes"]) == {"s001", "s002", "s003", "s004"}


def sparse(monkeypatch, colluding=0):
    """A party of 40 on a ring where each has three neighbours on either side, just before it masks."""
    monkeypatch.setattr(graphs, "density", lambda *told: (6, 4))
    party = Party(40, 30, colluding, size=8)
    return party, party.share(party.advert())


def test_a_site_told_that_its_neighbours_are_gone_is_not_opened_alone(monkeypatch):
    """It has no mask but its own then, whose shares its neighbours hold. They see what it was told, and do not confirm."""
    party, letters = sparse(monkeypatch)
    near = party.relay._graph.neighbours("s007")
    letters["s007"] = {"present": sorted(set(party.sites) - near), "boxes": {}}
    letters = party.mask(letters)
    for site, told in letters.items():
        if site in near:
            assert "who shared" in refuses(party.sites[site].confirm, told, party.sign(site))
        elif site == "s007":
            refuses(party.sites[site].confirm, told, party.sign(site))
        else:
            party.sites[site].confirm(told, party.sign(site))
    open_ = [s for s, x in party.sites.items() if x.state["stage"] == "confirmed" and "s007" in x.state["held"]]
    assert open_ == [], "nobody who holds a share of its mask would reveal it"


def test_what_a_neighbour_signed_of_who_shared_cannot_be_kept_back_or_forged(monkeypatch):
    party, letters = sparse(monkeypatch)
    letters = party.mask(letters)
    told = letters["s000"]
    one, other, *_ = told["signatures"]
    assert set(told["signatures"]) == party.relay._graph.neighbours("s000")
    for signatures in (
        {s: w for s, w in told["signatures"].items() if s != one},
        {**told["signatures"], one: told["signatures"][other]},
        {**told["signatures"], "s020x": told["signatures"][one]},
    ):
        refuses(party.sites["s000"].confirm, {**told, "signatures": signatures}, party.sign("s000"))
    party.sites["s000"].confirm(told, party.sign("s000"))


def test_a_site_that_sends_no_signature_with_its_vector_is_left_out():
    party, letters = at("mask")
    party.mask(letters)
    party.said["s004"] = {}
    letters = party.relay.masked(party.said)
    assert party.relay.survivors == ["s000", "s001", "s002", "s003"] and party.relay.faulty == {"s004": "reply-invalid"}
    assert (party.unmask(party.confirm(letters)) == party.plain(party.relay.survivors)).all()


def test_survivors_below_the_floor_are_refused():
    party, _ = at("confirm")
    assert "too few" in refuses(
        party.sites["s000"].confirm, {"survivors": ["s000", "s001", "s002"]}, party.sign("s000")
    )
    refuses(party.sites["s000"].confirm, {"survivors": ["s001", "s002", "s003", "s004"]}, party.sign("s000"))
    refuses(party.sites["s000"].confirm, {"survivors": [*party.sites, "s999"]}, party.sign("s000"))


def test_a_second_set_of_survivors_is_refused():
    """The coordinator cannot have one site counted as a survivor by some and as gone by others: nobody gives both its shares."""
    party, letters = at("unmask")
    refuses(party.sites["s000"].confirm, {"survivors": ["s000", "s001", "s002", "s003"]}, party.sign("s000"))
    answer = party.sites["s000"].unmask(letters["s000"])
    assert set(answer["seeds"]) == set(party.sites) and answer["keys"] == {}
    refuses(party.sites["s000"].unmask, letters["s000"])


def test_two_sets_of_survivors_never_both_reach_the_signatures():
    """Half of the sites are told that s004 is gone, half that s003 is: neither half reveals anything."""
    party, letters = at("confirm", n=6, quorum=3)
    views = {
        s: sorted(set(party.sites) - {"s004" if k % 2 else "s003"})
        for k, s in enumerate(["s000", "s001", "s002", "s005"])
    }
    said = {s: letters[s]["signatures"] for s in views}
    told = {s: {"survivors": v, "signatures": {o: w for o, w in said[s].items() if o in v}} for s, v in views.items()}
    signed = {s: party.sites[s].confirm(told[s], party.sign(s))["signature"] for s in views}
    for site, view in views.items():
        same = {s: x for s, x in signed.items() if views[s] == view}
        assert "too few" in refuses(party.sites[site].unmask, {"signatures": same})
        assert "signed" in refuses(party.sites[site].unmask, {"signatures": signed})


def test_a_forged_signature_under_the_survivors_is_refused():
    party, letters = at("unmask")
    told = copy.deepcopy(letters["s000"])
    told["signatures"]["s001"] = told["signatures"]["s002"]
    refuses(party.sites["s000"].unmask, told)


def test_no_answer_holds_both_shares_of_a_site():
    party, letters = at("mask")
    letters = party.confirm(party.mask(letters, gone=("s002",)))
    for site, told in letters.items():
        answer = party.sites[site].unmask(told)
        assert set(answer["keys"]) == {"s002"} and "s002" not in answer["seeds"] and len(answer["seeds"]) == 4


@pytest.mark.parametrize("told", [{}, {"adverts": 3}, {"adverts": {"s000": {}}}, {"adverts": {"s001": None}}])
def test_malformed_messages_are_refusals(told):
    party, _ = at("share")
    refuses(party.sites["s000"].share, told)


def test_colluders_up_to_the_number_cannot_open_a_vector():
    """Everything that the coordinator and two of ten sites ever hold of another's secrets is below the threshold of shares."""
    party, _ = at("unmask", n=10, quorum=8, colluding=2)
    shares = {10 - k: shamir.SHARE_BYTES for k in range(2)}
    assert party.relay._graph.threshold > len(shares)
    for n, quorum, c in [(4, 3, 1), (10, 8, 2), (100, 80, 10), (200, 140, 20)]:
        degree, threshold = density(n, c, n - survivors_needed(n, quorum, c))
        assert c < threshold <= degree + 1
        assert 2 * majority(n, c) > n + c, "two agreed sets of survivors share an honest signer"
        assert survivors_needed(n, quorum, c) - c >= quorum - c, "honest shares of noise in every total"


def test_survivors_that_colluders_could_cut_in_two_are_refused():
    """On a ring of 60 with 6 neighbours each: two gaps of three sites fall apart, one gap does not; two colluders can finish what is left of two."""
    ring = Graph(tuple(f"s{k:02d}" for k in range(60)), 6, 4)
    everybody = set(ring.ring)
    assert ring.neighbours("s00") == {"s57", "s58", "s59", "s01", "s02", "s03"}
    assert ring.joined(everybody, 5) and not ring.joined(everybody, 6)
    assert not ring.joined(everybody - {"s10", "s11", "s12", "s40", "s41", "s42"}, 0)
    assert ring.joined(everybody - {"s10", "s11", "s40", "s41"}, 1)
    assert not ring.joined(everybody - {"s10", "s11", "s40", "s41"}, 2)
    party, letters = Party(40, 30), None
    session = party.sites["s000"]
    letters = party.mask(party.share(party.advert()))
    session._graph = lambda adverts, salt: Graph(tuple(sorted(adverts)), 4, 3)  # a thinner one than the terms make
    survivors = sorted(set(party.sites) - {"s010", "s011", "s020", "s021"})
    assert "together" in refuses(session.confirm, {"survivors": survivors}, party.sign("s000"))
    assert letters


def test_a_tag_is_hashed_once():
    """It is needed for every advert: hashed anew each time, a roster of n sites costs each of them n^2."""
    terms = Party(3, 3).terms()
    assert terms.tag is terms.tag
