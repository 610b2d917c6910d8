"""The gate: what passes, and that a signed time passes once."""

import asyncio
import base64
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from strategies import gate as gate_module
from strategies.gate import WINDOW_SECONDS, Once, gate

KEY, TIME, SIGNATURE = b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"
PROTOBUF = (b"content-type", b"application/protobuf")
NORTH, SOUTH = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))


class Flower:
    """Stands in for the SuperLink: counts what reaches it."""

    def __init__(self, status=200):
        self.status, self.paths = status, []

    async def __call__(self, scope, receive, send):
        self.paths.append(scope["path"])
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"flower"})


def signed(time=b"2026-01-01T00:00:00", by=NORTH):
    """Headers as a SuperNode sends them."""
    pem = public_key_to_bytes(by.public_key())
    return [(KEY, base64.b64encode(pem)), (TIME, time), (SIGNATURE, base64.b64encode(sign_message(by, time))), PROTOBUF]


async def ask(app, path="/v1/fleet/pull-messages", headers=(), method="POST", body=b""):
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="https://gate") as client:
        return (await client.request(method, path, headers=list(headers), content=body)).status_code


async def test_a_signed_time_passes_once():
    flower = Flower()
    app, headers = gate(flower), signed()
    assert await ask(app, headers=headers) == 200
    assert await ask(app, headers=headers) == 401, "sent again"
    assert await ask(app, "/v1/fleet/push-messages", headers, body=b"other") == 401, "or with other content"
    assert await ask(app, headers=signed()) == 401, "or signed anew"
    assert await ask(app, headers=signed(by=SOUTH)) == 200, "another site at the same time"
    assert await ask(app, headers=signed(b"2026-01-01T00:00:01")) == 200
    assert len(flower.paths) == 3


async def test_no_header_hides_another():
    """Flower reads the first of two headers of one name."""
    flower = Flower()
    app = gate(flower)
    key, used, proof, kind = signed(b"1")
    _, fresh, fresh_proof, _ = signed(b"2")
    other = signed(by=SOUTH)[0]
    assert await ask(app, headers=[key, used, proof, kind]) == 200
    for headers in (
        [key, used, fresh, fresh_proof],
        [key, fresh, used, fresh_proof],
        [key, other, fresh, fresh_proof],
        [key, fresh, fresh_proof, proof],
        [key, fresh],
        [key, fresh_proof],
        [fresh, fresh_proof],
        [],
        [key, fresh, proof],
        [other, fresh, fresh_proof],
        [(KEY, b"not base64!"), fresh, fresh_proof],
        [(KEY, base64.b64encode(b"no key")), fresh, fresh_proof],
        signed(b"3" * 65)[:3],
    ):
        assert await ask(app, headers=[*headers, kind]) == 401, headers
    assert len(flower.paths) == 1
    assert await ask(app, headers=[key, fresh, fresh_proof, kind]) == 200, "junk before it used nothing up"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 412, 415, 500])
async def test_whoever_is_no_site_uses_nothing_up(status, monkeypatch):
    """Flower answers many things before it asks whose a key is, and anybody can make a key and sign with it."""
    once = Once()
    monkeypatch.setattr(gate_module, "REMEMBERED", 2)
    monkeypatch.setattr(gate_module, "Once", lambda: once)
    flower = Flower(status)
    app = gate(flower)
    for second in range(5):
        assert await ask(app, headers=signed(str(second).encode())) == status
    assert once.seen == {}, "not even its key"
    flower.status = 200
    assert await ask(app, headers=signed(b"a site", SOUTH)) == 200
    flower.status = status
    for again in (status, status if status == 401 else 401):
        assert await ask(app, headers=signed(b"next", SOUTH)) == again, "a site's failed request is not sent again"


async def test_a_site_that_floods_keeps_out_itself_alone(monkeypatch):
    monkeypatch.setattr(gate_module, "REMEMBERED", 3)
    app = gate(Flower())
    answers = [await ask(app, headers=signed(str(second).encode())) for second in range(5)]
    assert answers == [200, 200, 200, 429, 429]
    assert await ask(app, headers=signed(b"0")) == 401, "and its replays are still told apart"
    assert [await ask(app, headers=signed(str(k).encode(), SOUTH)) for k in range(3)] == [200] * 3


async def test_what_flower_would_refuse_does_not_reach_it():
    flower = Flower()
    app, headers = gate(flower), signed()
    assert await ask(app, headers=headers[:3]) == 415
    assert await ask(app, headers=[*headers[:3], (b"content-type", b"application/json")]) == 415
    assert await ask(app, "/v1/fleet/no-such", headers) == 403
    assert await ask(app, headers=headers, method="PUT") == 403
    large = str(gate_module.MAX_FLEET_BODY + 1).encode()
    assert await ask(app, headers=[*headers, (b"content-length", large)]) == 413
    assert await ask(app, headers=[*headers, (b"content-length", b"-1")]) == 411
    assert await ask(app, headers=[*headers, (b"transfer-encoding", b"chunked")]) == 411
    assert flower.paths == []


def test_an_object_of_a_model_update_fits():
    from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE

    assert 2 * FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE < gate_module.MAX_FLEET_BODY


def test_signed_times_are_forgotten_when_flower_would_not_take_them(monkeypatch):
    at = [0.0]
    once = Once(lambda: at[0])

    def first(signed):
        return once.refusal(b"k", signed) is None

    assert first(b"1") and not first(b"1")
    at[0] = WINDOW_SECONDS
    assert not first(b"1") and first(b"2")
    at[0] = WINDOW_SECONDS + 1
    assert first(b"1") and list(once.seen[b"k"]) == [b"2", b"1"]
    monkeypatch.setattr(gate_module, "REMEMBERED", 2)
    assert not first(b"3"), "without room nothing passes"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("POST", "/v1/control/start-run", 403),
        ("POST", "/v1/runtime/acquire-task", 403),
        ("POST", "/v1/fleet/../control/list-runs", 403),
        ("POST", "/v1/fleet//x", 403),
        ("GET", "/docs", 403),
        ("POST", "/enrolment", 201),
        ("POST", "/enrolment/rotate", 201),
        ("GET", "/enrolment/sites", 403),
        ("DELETE", "/enrolment", 403),
        ("POST", "/enrolment/../users", 403),
        ("GET", "/users", 403),
    ],
)
async def test_what_passes(method, path, status):
    def server(request):
        assert "authorization" not in request.headers
        return httpx.Response(201, json={"path": request.url.path})

    behind = httpx.AsyncClient(transport=httpx.MockTransport(server), base_url="http://server")
    assert await ask(gate(Flower(), behind), path, [("Authorization", "Bearer x")], method) == status
    if path.startswith("/enrolment"):
        assert await ask(gate(Flower()), path, (), method) == 403, "not without a server behind it"


async def test_the_server_behind_is_away_or_asked_too_much():
    def away(request):
        raise httpx.ConnectError("no")

    app = gate(Flower(), httpx.AsyncClient(transport=httpx.MockTransport(away), base_url="http://server"))
    assert await ask(app, "/enrolment", body=b"{}") == 502
    assert await ask(app, "/enrolment", body=b"x" * 20_000) == 413


class Link(Flower):
    """A SuperLink that does things once: hands a message out, announces a reply, stores an object."""

    def __init__(self, **queues):
        super().__init__()
        self.queues = queues

    async def __call__(self, scope, receive, send):
        name = scope["path"].rpartition("/")[2]
        self.paths.append(name)
        while (await receive()).get("more_body"):
            pass
        left = self.queues.get(name, [])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": left.pop(0) if left else b""})


def held_up(link, name, going):
    """A SuperLink that is at the requests of one name until it may go on."""

    async def app(scope, receive, send):
        if scope["path"].endswith(name):
            await going.wait()
        await link(scope, receive, send)

    return app


class Site:
    """A SuperNode that signs now, whose answers may get lost."""

    def __init__(self, link, key=NORTH):
        self.known = {public_key_to_bytes(k.public_key()) for k in (NORTH, SOUTH)}
        self.app, self.key = gate(link, knows=lambda key: key in self.known), key

    async def ask(self, name, body=b"", at=None):
        when = (at or datetime.now(UTC)).isoformat().encode()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="https://gate") as client:
            answer = await client.post(f"/v1/fleet/{name}", content=body, headers=signed(when, self.key))
        return answer.status_code, answer.content


async def test_an_answer_that_was_lost_is_given_again():
    """Flower has handed the message out, announced the reply, stored the object: asked again it would say that there is nothing."""
    site = Site(Link(**{"pull-messages": [b"m1", b"m2"], "push-messages": [b"lacks"], "push-object": [b"ok", b"ok"]}))
    assert await site.ask("pull-messages") == (200, b"m1")
    assert await site.ask("send-node-heartbeat") == (200, b"")
    assert await site.ask("pull-messages") == (200, b"m1"), "the same message again"
    assert await site.ask("get-run") == (200, b"")
    assert await site.ask("pull-messages") == (200, b"m2"), "the site has gone on: it had the first"
    assert [await site.ask("push-messages", b"reply") for _ in range(2)] == [(200, b"lacks")] * 2
    for name in (b"o1", b"o2", b"o1", b"o2"):
        assert await site.ask("push-object", name) == (200, b"ok"), "two are on their way at once"
    assert await site.ask("push-object", b"o3") == (200, b""), "what was not stored is not said to be"
    assert await site.ask("confirm-message-received") == (200, b"")
    assert await site.ask("pull-messages") == (200, b"")
    assert await site.ask("pull-messages") == (200, b"")


async def test_a_message_that_is_not_heard_of_waits_behind_the_reply_to_another():
    pushes = {"push-messages": [b"lacks"], "push-object": [b"ok"] * 9}
    site = Site(Link(**{"pull-messages": [b"m2", b"m3"]}, **pushes))
    assert await site.ask("pull-messages") == (200, b"m2"), "on a bad line, asked for before the site took its first"
    await site.ask("push-messages", b"reply to m1")
    for number in range(9):
        assert await site.ask("push-object", str(number).encode()) == (200, b"ok")
    assert await site.ask("pull-messages") == (200, b"m2")
    await site.ask("pull-object")
    assert await site.ask("pull-messages") == (200, b"m3")


@pytest.mark.parametrize(("age", "given"), [(50, True), (70, False)])
async def test_a_message_is_given_again_no_longer_than_flower_would(age, given):
    said = Metadata(created_at=time.time() - age, ttl=60.0)
    message = PullMessagesResponse(messages_list=[Message(metadata=said)]).SerializeToString()
    site = Site(Link(**{"pull-messages": [message]}))
    assert await site.ask("pull-messages") == (200, message)
    assert await site.ask("pull-messages") == (200, message if given else b"")


async def test_two_requests_that_come_first_at_once_share_what_is_kept():
    going, link = asyncio.Event(), Link(**{"pull-messages": [b"m1"]})
    site = Site(held_up(link, "pull-messages", going))
    first = asyncio.ensure_future(site.ask("pull-messages"))
    while await site.ask("send-node-heartbeat") != (200, b""):
        pass
    going.set()
    assert await first == (200, b"m1") == await site.ask("pull-messages")


async def test_a_lost_answer_is_its_own_sites_and_not_for_ever(monkeypatch):
    link = Link(**{"pull-messages": [b"m1"], "push-messages": [b"a", b"b", b"c", b"d", b"e"]})
    site = Site(link)
    assert await site.ask("pull-messages") == (200, b"m1")
    assert await site.ask("pull-messages", at=datetime.now(UTC) - timedelta(seconds=400)) == (200, b""), (
        "Flower's to refuse"
    )
    site.key = SOUTH
    assert await site.ask("pull-messages") == (200, b"")
    site.key = NORTH
    known, site.known = site.known, set()
    assert await site.ask("pull-messages") == (200, b""), "Flower's to refuse: its key was shut out"
    site.known = known
    assert await site.ask("pull-messages") == (200, b"m1")
    monkeypatch.setattr(gate_module, "WINDOW_SECONDS", 0)
    assert await site.ask("pull-messages") == (200, b""), "too long ago"
    monkeypatch.undo()
    assert [(await site.ask("push-messages", str(k).encode()))[1] for k in range(5)] == [b"a", b"b", b"c", b"d", b"e"]
    assert await site.ask("push-messages", b"0") == (200, b""), "the oldest is forgotten"
    assert await site.ask("push-messages", b"4") == (200, b"e")


async def test_a_site_that_goes_away_stops_nothing_and_finds_the_answer_when_it_is_back():
    """The line is cut after the request: Flower has taken the message out of its queue."""
    site = Site(Link(**{"pull-messages": [b"m1"]}))
    assert await site.ask("activate-node") == (200, b"")
    parts = [{"type": "http.request", "body": b""}]

    async def receive():
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message):
        """To nobody, as uvicorn does it."""

    headers = [*signed(datetime.now(UTC).isoformat().encode()), (b"content-length", b"0")]
    scope = {"type": "http", "method": "POST", "path": "/v1/fleet/pull-messages", "headers": headers}
    await site.app(scope, receive, send)
    assert await site.ask("pull-messages") == (200, b"m1")


async def test_the_same_request_does_not_overtake_the_first():
    """It was tried again while the SuperLink still was at it: it waits for that answer."""
    going, link = asyncio.Event(), Link(**{"push-messages": [b"lacks"]})
    site = Site(held_up(link, "push-messages", going))
    await site.ask("activate-node")
    both = [asyncio.ensure_future(site.ask("push-messages", b"reply")) for _ in range(2)]
    await asyncio.sleep(0.05)
    going.set()
    assert await asyncio.gather(*both) == [(200, b"lacks")] * 2 and link.paths.count("push-messages") == 1
