"""The gate: what passes, and that a signed time passes once."""

import base64

import httpx
import pytest

from strategies import gate as gate_module
from strategies.gate import WINDOW_SECONDS, Once, gate

KEY, TIME = b"flwr-public-key", b"flwr-timestamp"


class Flower:
    """Stands in for the SuperLink: counts what reaches it."""

    def __init__(self, status=200):
        self.status, self.paths = status, []

    async def __call__(self, scope, receive, send):
        self.paths.append(scope["path"])
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"flower"})


def key(text=b"a key"):
    return base64.b64encode(text)


async def ask(app, path="/v1/fleet/pull-messages", headers=(), method="POST", body=b""):
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="https://gate") as client:
        return (await client.request(method, path, headers=list(headers), content=body)).status_code


async def test_a_signed_time_passes_once():
    flower = Flower()
    app = gate(flower)
    signed = [(KEY, key()), (TIME, b"2026-01-01T00:00:00")]
    assert await ask(app, headers=signed) == 200
    assert await ask(app, headers=signed) == 401, "sent again"
    assert await ask(app, "/v1/fleet/push-messages", signed, body=b"other") == 401, "or with other content"
    assert await ask(app, headers=[(KEY, key(b"b")), signed[1]]) == 200, "another site at the same time"
    assert await ask(app, headers=[signed[0], (TIME, b"2026-01-01T00:00:01")]) == 200
    assert len(flower.paths) == 3


async def test_no_header_hides_another():
    """Flower reads the first of two headers of one name."""
    app, used, fresh = gate(Flower()), (TIME, b"1"), (TIME, b"2")
    assert await ask(app, headers=[(KEY, key()), used]) == 200
    for headers in (
        [(KEY, key()), used, fresh],
        [(KEY, key()), fresh, used],
        [(KEY, key()), (KEY, key(b"b")), used],
        [(KEY, key())],
        [fresh],
        [],
        [(KEY, b"not base64!"), fresh],
        [(KEY, b"YR=="), (TIME, b"3" * 65)],
    ):
        assert await ask(app, headers=headers) == 401, headers
    assert await ask(app, headers=[(KEY, b"YQ=="), (TIME, b"5")]) == 200
    assert await ask(app, headers=[(KEY, b"YR=="), (TIME, b"5")]) == 401, "the same key, spelt otherwise"


async def test_junk_uses_nothing_up():
    refusing = Flower(401)
    app = gate(refusing)
    signed = [(KEY, key()), (TIME, b"1")]
    assert await ask(app, headers=signed) == 401
    refusing.status = 200
    assert await ask(app, headers=signed) == 200 and len(refusing.paths) == 2


def test_signed_times_are_forgotten_when_flower_would_not_take_them(monkeypatch):
    at = [0.0]
    once = Once(lambda: at[0])
    assert once.first(b"k", b"1") and not once.first(b"k", b"1")
    at[0] = WINDOW_SECONDS
    assert not once.first(b"k", b"1") and once.first(b"k", b"2")
    at[0] = WINDOW_SECONDS + 1
    assert once.first(b"k", b"1") and list(once.seen) == [(b"k", b"2"), (b"k", b"1")]
    monkeypatch.setattr(gate_module, "REMEMBERED", 2)
    assert not once.first(b"k", b"3"), "without room nothing passes"


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
