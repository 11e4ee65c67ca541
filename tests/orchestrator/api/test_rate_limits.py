"""Requests are limited by address, by token and by project; health checks never are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.api.rate_limits import MAX_KEYS, RateLimiter
from tests.orchestrator.control.clock import SettableClock

ONCE = 0.01
"""A rate whose bucket holds one request, and fills in 100 s."""
OpenLimited = Callable[..., Any]


def make_limiter(rate: float) -> tuple[RateLimiter, SettableClock]:
    clock = SettableClock(0.0)
    return RateLimiter(rate, clock=clock.now), clock


def test_a_burst_is_allowed_and_then_the_rate():
    limiter, clock = make_limiter(10)
    assert [limiter.take("a") for _ in range(50)] == [0.0] * 50
    assert limiter.take("a") == 0.1
    clock.at = 0.1
    assert limiter.take("a") == 0.0 and limiter.take("a") > 0
    clock.at = 1000.0
    assert [limiter.take("a") for _ in range(51)].count(0.0) == 50


def test_a_refused_request_costs_nothing_and_keys_are_separate():
    limiter, _ = make_limiter(1)
    assert limiter.take("a", 4) == 0.0 and limiter.take("a", 4) == 3.0
    assert limiter.take("a", 1) == 0.0 and limiter.take("b", 4) == 0.0


def test_a_request_that_costs_more_than_a_burst_is_possible():
    limiter, _ = make_limiter(1)
    assert limiter.take("a", 1000) == 0.0 and limiter.take("a", 1000) == 5.0


def test_keys_are_forgotten_so_that_they_do_not_fill_the_memory():
    limiter, _ = make_limiter(1)
    assert limiter.take("first", 5) == 0.0
    for number in range(MAX_KEYS):
        limiter.take(str(number))
    assert limiter.take("first", 5) == 0.0


def test_a_token_above_its_rate_is_told_when_to_retry(open_limited: OpenLimited):
    with open_limited(token_requests_per_s=ONCE) as api:
        assert api.request("GET", "/v1/runs", "viewer", "default").status_code == 200
        refused = api.request("GET", "/v1/runs", "viewer", "default")
        assert refused.status_code == 429 and 99 <= int(refused.headers["Retry-After"]) <= 100
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert "Too many requests of this token. Retry in" in refused.json()["detail"]
        for scope, project in (("submitter", "default"), ("viewer", "other"), ("viewer", None)):
            assert api.request("GET", "/v1/runs", scope, project).status_code == 200
        assert api.request("GET", "/healthz", None).status_code == 200


def test_the_tokens_of_a_project_share_its_rate(open_limited: OpenLimited):
    with open_limited(project_requests_per_s=ONCE) as api:
        assert api.request("GET", "/v1/runs", "viewer", "default").status_code == 200
        refused = api.request("GET", "/v1/runs", "submitter", "default")
        assert refused.status_code == 429 and "of the project" in refused.json()["detail"]
        assert api.request("GET", "/v1/runs", "viewer", "other").status_code == 200


def test_a_token_for_all_projects_is_limited_by_its_address_only(open_limited: OpenLimited):
    with open_limited(token_requests_per_s=ONCE, address_requests_per_s=0.5) as api:
        codes = [api.request("GET", "/v1/runs").status_code for _ in range(5)]
        assert set(codes) >= {200, 429} and codes[:2] == [200, 200]
        assert api.request("GET", "/metrics").status_code == 200
        assert api.request("GET", "/readyz", None).status_code == 200


def test_a_large_body_counts_as_many_requests(open_limited: OpenLimited):
    with open_limited(token_requests_per_s=4) as api:
        answer = api.request(
            "POST", "/v1/runs/check", "submitter", "default", content=b" " * (1 << 20)
        )
        assert answer.status_code == 422
        refused = api.request(
            "POST", "/v1/runs/check", "submitter", "default", content=b" " * (1 << 20)
        )
        assert refused.status_code == 429


def test_an_address_that_tries_secrets_is_stopped_and_its_known_tokens_are_not(
    open_limited: OpenLimited,
):
    with open_limited(anonymous_requests_per_s=0.2) as api:
        assert api.request("GET", "/v1/me").status_code == 200
        guess = {"Authorization": "Bearer slora_guess"}
        refused = [api.request("GET", "/v1/me", None, headers=guess) for _ in range(3)]
        assert {answer.status_code for answer in refused} == {429}
        assert api.request("GET", "/openapi.json", None).status_code == 429
        assert api.request("GET", "/v1/me").status_code == 200
        assert api.request("GET", "/healthz", None).status_code == 200
