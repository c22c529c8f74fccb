"""Webhooks are signed as Standard Webhooks has them, by its own library, and nothing else passes as one."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook
from webhook_receiver import SECRET

from tidemill import webhooks
from tidemill.client import WebhookError, verify

OTHER = "whsec_" + "QW5vdGhlciBzZWNyZXQgb2YgdGhpcnR5LXR3byBieXRlcyE="
BODY = st.dictionaries(st.text(max_size=9), st.text(max_size=9)).map(
    lambda more: json.dumps({**more, "id": "n-1"}).encode()
)


def signed(body: bytes, now: float, *secrets: str) -> dict[str, str]:
    return webhooks.signed_headers("n-1", body, [webhooks.secret_bytes(one) for one in secrets or (SECRET,)], now)


@pytest.mark.slow
@given(BODY, st.integers(1, 2**33))
def test_a_signature_is_that_of_the_reference_and_is_verified(body: bytes, now: int) -> None:
    headers = signed(body, now)
    reference = Webhook(SECRET).sign("n-1", datetime.fromtimestamp(now, UTC), body.decode())
    assert headers["webhook-signature"] == reference
    assert verify(headers, body, SECRET, now=now + 1) == json.loads(body)


def test_the_reference_takes_what_is_sent_now() -> None:
    body, now = b'{"id":"n-1","type":"test"}', datetime.now(UTC).timestamp()
    assert Webhook(SECRET).verify(body, signed(body, now)) == {"id": "n-1", "type": "test"}


@pytest.mark.slow
@settings(max_examples=200)
@given(BODY, st.data())
def test_what_is_changed_anywhere_is_no_webhook(body: bytes, data: st.DataObject) -> None:
    headers = signed(body, 1000)
    assert verify(headers, body, SECRET, now=1000)
    part = data.draw(st.sampled_from(["body", *headers]))
    before = body if part == "body" else headers[part].encode()
    place = data.draw(st.integers(0, len(before) - 1))
    changed = before[:place] + bytes([before[place] ^ data.draw(st.integers(1, 127))]) + before[place + 1 :]
    if part == "body":
        body = changed
    else:
        headers[part] = changed.decode(errors="replace")
    with pytest.raises(WebhookError):
        verify(headers, body, SECRET, now=1000)


@pytest.mark.slow
@given(
    st.dictionaries(st.sampled_from(["webhook-id", "Webhook-Timestamp", "webhook-signature"]), st.text()), st.binary()
)
def test_noise_is_no_webhook(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(WebhookError):
        verify(headers, body, SECRET)


def test_names_of_headers_may_be_written_in_any_way() -> None:
    headers = {name.title(): value for name, value in signed(b'{"id":"n-1"}', 5).items()}
    assert verify(headers, b'{"id":"n-1"}', SECRET, now=5)


def test_while_a_secret_takes_anothers_place_both_sides_may_know_both() -> None:
    body = b'{"id":"n-1"}'
    assert verify(signed(body, 5, OTHER, SECRET), body, SECRET, now=5)
    assert verify(signed(body, 5, OTHER), body, f"{SECRET} {OTHER}", now=5)
    with pytest.raises(WebhookError, match="by this secret"):
        verify(signed(body, 5, OTHER), body, SECRET, now=5)


@pytest.mark.parametrize("now", [1301.0, 699.0])
def test_what_was_sent_long_ago_or_in_the_future_is_refused(now: float) -> None:
    with pytest.raises(WebhookError, match="more than 300 s"):
        verify(signed(b'{"id":"n-1"}', 1000), b'{"id":"n-1"}', SECRET, now=now)


def test_another_notice_s_id_is_refused() -> None:
    with pytest.raises(WebhookError, match="with its id"):
        verify(signed(b'{"id":"n-2"}', 5), b'{"id":"n-2"}', SECRET, now=5)


@pytest.mark.parametrize("secret", ["whsec_c2hvcnQ=", "whsec_%%%", "", "whsec_" + "QQ" * 200])
def test_a_weak_or_broken_secret_is_none_and_is_not_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes") as error:
        webhooks.secret_bytes(secret)
    assert not secret or secret not in str(error.value)


def test_receivers_are_read_from_json_and_from_a_file(tmp_path) -> None:
    text = json.dumps({
        "ops": {"url": "https://ops.example.org/hook", "secret": SECRET, "about": ["alert", "decision.promoted"]},
        "team": {"url": "slack://a/b/c"},
    })  # fmt: skip
    (tmp_path / "receivers.json").write_text(text)
    receivers = webhooks.read_receivers(text)
    assert webhooks.read_receivers(str(tmp_path / "receivers.json")) == receivers
    assert webhooks.read_receivers("") == {}
    assert (receivers["ops"].is_webhook, receivers["team"].is_webhook) == (True, False)
    assert [receivers["ops"].wants(kind) for kind in ("alert.opened", "decision.promoted", "decision.kept")] == [
        True,
        True,
        False,
    ]
    assert receivers["team"].wants("circuit_breaker.opened")
    assert SECRET not in repr(receivers)
    assert "slack" not in repr(receivers)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "url, secret and about"),
        ({"url": "https://h/p", "secret": SECRET, "more": 1}, "other fields"),
        ({"url": "https://h/p"}, "openssl rand"),
        ({"url": "https://h/p", "secret": "whsec_dG9wc2VjcmV0"}, "openssl rand"),
        ({"url": "https://h/p", "secret": 5}, "openssl rand"),
        ({"url": "https:///topsecret", "secret": SECRET}, "names no host"),
        ({"url": "https://h:port/topsecret", "secret": SECRET}, "neither"),
        ({"url": "topsecret"}, "neither"),
        ({"url": ["topsecret"]}, "neither"),
        ({"url": "slack://topsecret", "secret": SECRET}, "leave it out"),
        ({"url": "slack://topsecret", "about": []}, "alert, decision, circuit_breaker"),
        ({"url": "slack://topsecret", "about": ["weather"]}, "about"),
        ("topsecret", "no object"),
    ],
)
def test_a_wrong_receiver_is_named_without_its_secrets(entry: object, words: str) -> None:
    with pytest.raises(ValueError, match="receiver ops") as error:
        webhooks.read_receivers(json.dumps({"ops": entry}))
    assert words in str(error.value)
    assert not {"topsecret", SECRET, "dG9wc2VjcmV0"} & {*str(error.value).split()}
    assert "topsecret" not in str(error.value)
