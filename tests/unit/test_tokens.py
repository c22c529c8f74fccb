"""Tokens: which are strong enough, who holds which, and that a service that is given weak ones does not start."""

from __future__ import annotations

import hashlib

import pytest
from click.testing import CliRunner

from tidemill import settings
from tidemill.cli.main import cli
from tidemill.errors import SettingsError
from tidemill.tokens import Holder, Role, Tokens, new_token, parse_holders, token_hash, weakness

HASH = "0f" * 32


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "secret",
        "password1234",
        "0" * 64,
        "ab" * 40,
        "1234567890" * 3,
        "0123456789abcdef" * 1 + "0123456789abcde",
        "a token with blanks in it, long enough",
        "schlüssel-0123456789-abcdefghijklmn",
        "x" * 513,
        "A" * 2**20,
        "0123456789abcdefghijk",
        "0123456789abcdefghijklmnop\n",
        "0123456789abcdefghijklmnop\x00",
    ],
)
def test_a_token_that_could_be_guessed_or_sent_wrongly_is_weak_and_opens_nothing(token: str) -> None:
    assert weakness(token)
    assert Tokens({token_hash(token): Holder("ann", Role.ADMIN)}).holder(token) is None
    bob = Holder("bob", Role.VIEWER)
    both = Tokens({token_hash(token): Holder("ann", Role.ADMIN), token_hash(strong := new_token()): bob})
    asked = (token, strong, token, strong, token)
    assert [both.holder(one) for one in asked] == [None, bob, None, bob, None], "also when it comes again"


@pytest.mark.parametrize("token", [hashlib.sha256(bytes([n])).hexdigest()[:32] for n in range(200)])
def test_128_random_bits_in_hex_are_strong(token: str) -> None:
    assert weakness(token) == weakness(token.upper()) == ""


def test_a_new_token_is_strong_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(200)}
    assert len(tokens) == 200
    assert {weakness(token) for token in tokens} == {""}


def test_holders_are_found_by_their_tokens_alone() -> None:
    one, other = new_token(), new_token()
    entries = f"ann:viewer:{token_hash(one)},\n bob@example.org:admin:{token_hash(other)}\n"
    tokens = Tokens(parse_holders(entries))
    assert (tokens.holder(one), tokens.holder(other)) == (
        Holder("ann", Role.VIEWER),
        Holder("bob@example.org", Role.ADMIN),
    )
    assert tokens.holder(token_hash(one)) is None, "the hash is no token"
    assert tokens.holder(new_token()) is None
    assert not Tokens(parse_holders(" "))


@pytest.mark.parametrize(
    "entry",
    [
        "ann",
        "ann:viewer",
        f"ann:root:{HASH}",
        f":viewer:{HASH}",
        f"ann:viewer:{HASH[1:]}",
        f"ann:VIEWER:{HASH}",
        f"a b:viewer:{HASH}",
        f"ann:viewer:{HASH}:more",
        f"gate:admin:{HASH}",
        f"monitor:viewer:{HASH}",
        f"declaration:viewer:{HASH}",
        f"<b>:viewer:{HASH}",
        f"{'a' * 65}:viewer:{HASH}",
        f"ann:viewer:{HASH} bob:admin:{HASH}",
        "ann:viewer:the-token-itself-by-mistake",
    ],
)
def test_an_entry_that_is_wrong_is_refused_at_the_start_and_what_it_has_is_not_shown(entry: str) -> None:
    with pytest.raises(SettingsError, match="setting status_tokens: entry") as refused:
        settings.load(status_tokens=entry)
    assert HASH not in str(refused.value)
    assert "by-mistake" not in str(refused.value)


@pytest.mark.parametrize("token", ["x", "a secret", "0" * 64])
def test_a_weak_token_is_refused_at_the_start_and_not_shown(token: str) -> None:
    with pytest.raises(SettingsError, match=r"setting status_token: it has .*`tidemill tokens new NAME`") as refused:
        settings.load(status_token=token)
    assert token not in str(refused.value).removeprefix("setting status_token") or len(token) == 1


def test_the_one_token_of_a_small_installation_may_do_everything_unless_its_entry_says_less() -> None:
    token = new_token()
    assert settings.load(status_token=token).token_holders().holder(token) == Holder("admin", Role.ADMIN)
    entries = f"ann:viewer:{token_hash(token)}"
    chosen = settings.load(status_token=token, status_tokens=entries)
    assert chosen.token_holders().holder(token) == Holder("ann", Role.VIEWER)
    assert token not in repr(chosen)


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_the_command_prints_a_new_token_and_its_entry(role: str) -> None:
    done = CliRunner().invoke(cli, ["tokens", "new", "ann", "--role", role])
    lines = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert list(lines) == ["TIDEMILL_STATUS_TOKEN", "TIDEMILL_STATUS_TOKENS"]
    holder = Tokens(parse_holders(lines["TIDEMILL_STATUS_TOKENS"])).holder(lines["TIDEMILL_STATUS_TOKEN"])
    assert holder == Holder("ann", Role[role.upper()])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gate", "a b", "", "<script>", "a" * 65, "a:b", "é"])
def test_the_command_refuses_a_name_that_an_entry_could_not_have(name: str) -> None:
    done = CliRunner().invoke(cli, ["tokens", "new", name])
    assert isinstance(done.exception, SettingsError)
    assert "expected 1 to 64 letters" in str(done.exception)


@pytest.mark.parametrize("hosts", ["http://a", "a:8000", "a, b", ",", "a,", "a b", "*", "*.example.org", "é"])
def test_host_names_that_no_request_could_have_are_refused_at_the_start(hosts: str) -> None:
    with pytest.raises(SettingsError, match=r"setting status_hosts .*expected names without scheme and port"):
        settings.load(status_hosts=hosts)


@pytest.mark.parametrize("address", ["localhost", "0", "", "127.0.0.1:80", "::g"])
def test_an_address_to_listen_on_that_is_none_is_refused_at_the_start(address: str) -> None:
    with pytest.raises(SettingsError, match=r"setting status_bind .*expected an IP address"):
        settings.load(status_bind=address)
