"""Tokens of the status service, and keys of the gateway: who holds one, what it allows, and how a new one is made.

A token has at least 128 bits, so a plain SHA-256 is all that a service needs to know of it, and nobody guesses a token
from its hash. Only its holder has the token itself.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from functools import reduce
from operator import or_

from tidemill.limits import TOKEN_CHARACTERS

MIN_TOKEN_BITS = 128
#: A random token of 128 bits has fewer different characters in one of ten million cases.
MIN_DIFFERENT_CHARACTERS = 8
#: What `by` in decisions and alerts means already.
RESERVED_NAMES = ("gate", "monitor", "declaration")
#: Alphabets that a token may be of, with their number of characters; the last is all that RFC 6750 allows.
_ALPHABETS = ((r"[0-9]+", 10), (r"[0-9a-f]+|[0-9A-F]+", 16), (r"[0-9a-z]+|[0-9A-Z]+", 36), (r"[\w.~+/=-]+", 64))
_ENTRY = re.compile(r"([A-Za-z0-9][A-Za-z0-9._@-]{0,63}):([a-z]+(?:\+[a-z]+)*):([0-9a-f]{64})")


class Role(IntEnum):
    """What a holder may do at the status service; each may do what those before it may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


class Permission(IntFlag):
    """What a holder may do at the gateway: an application has one or several."""

    PRODUCE = 1
    READ = 2
    COMMAND = 4


class Extra(Enum):
    """What a holder may beside a role, by a word of its own: see personal fields; have entities forgotten."""

    PERSONAL = "personal"
    FORGET = "forget"


Needed = Role | Permission | Extra


def role_name(role: Needed) -> str:
    """Return a role as people write it."""
    return str(role.name).lower().replace("|", "+")


@dataclass(frozen=True)
class Holder:
    """Somebody with a token. `personal`, `forget`: see `Extra`; an admin may both."""

    name: str
    role: Role | Permission
    personal: bool = False
    forget: bool = False

    @property
    def role_name(self) -> str:
        """The role as people write it: `operator`, `produce+read`, `viewer+personal`."""
        return "+".join([role_name(self.role), *(extra.value for extra in Extra if getattr(self, extra.value))])

    @property
    def sees_personal(self) -> bool:
        """Whether the holder may see personal fields."""
        return self.may(Extra.PERSONAL)

    def may(self, needed: Needed) -> bool:
        """Return whether the holder may do what needs this role."""
        if isinstance(needed, Extra):
            return getattr(self, needed.value) or self.role is Role.ADMIN
        return bool(self.role & needed) if isinstance(needed, Permission) else self.role >= needed


def new_token() -> str:
    """Return a new token of 256 bits."""
    return secrets.token_urlsafe(32)


def token_hash(token: str | bytes) -> str:
    """Return the hash that a service knows a token by, in hex."""
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).hexdigest()


def weakness(token: str) -> str:
    """Return why a token is not fit to be used; '' where it is."""
    if len(token) > TOKEN_CHARACTERS.max:
        return TOKEN_CHARACTERS.excess(len(token))
    bits = next((len(token) * math.log2(size) for form, size in _ALPHABETS if re.fullmatch(form, token, re.ASCII)), 0)
    if not bits:
        return "it has characters other than letters, digits and ._~+/=-"
    if bits < MIN_TOKEN_BITS:
        return f"it has at most {bits:.0f} bits where at least {MIN_TOKEN_BITS} were expected"
    if len(set(token)) < MIN_DIFFERENT_CHARACTERS:
        return f"it has {len(set(token))} different characters; a random token has more"
    return ""


def parse_holders(text: str, roles: type[Role] | type[Permission] = Role) -> dict[str, Holder]:
    """Return the holders, by their tokens' hashes, that `NAME:ROLE:SHA256` entries name, split by blanks or commas.

    A permission may be several, as `produce+read`; `personal` and `forget` beside a role allow what `Extra` says.

    Raises ValueError, without a hash in its message, because somebody may have put the token itself there.
    """
    holders: dict[str, Holder] = {}
    for number, entry in enumerate(filter(None, re.split(r"[\s,]+", text)), 1):
        match = _ENTRY.fullmatch(entry)
        words = match[2].upper().split("+") if match else []
        extras: dict[str, bool] = {}
        for extra in Extra if roles is Role else (Extra.PERSONAL,):  # the gateway forgets nobody
            if extra.name in words[1:]:
                words.remove(extra.name)
                extras[extra.value] = True
        if match is None or not {*words} <= {*roles.__members__} or (len(words) > 1 and roles is Role):
            names = ", ".join(name.lower() for name in roles.__members__)
            raise ValueError(
                f"entry {number} is not NAME:ROLE:HASH, with one of the roles {names}, and the SHA-256 of the token in "
                f"hex: make one by `tidemill tokens new NAME`"
            )
        name, _, digest = match.groups()
        if name in RESERVED_NAMES:
            raise ValueError(f"entry {number}: {name} is no person: name somebody else")
        if digest in holders:
            raise ValueError(f"entry {number} has the token of {holders[digest].name}: make {name} one of their own")
        role = reduce(or_, (roles[word] for word in words)) if words[1:] else roles[words[0]]
        holders[digest] = Holder(name, role, **extras)
    return holders


class Tokens:
    """Finds who holds a token. It knows hashes alone."""

    def __init__(self, holders: Mapping[str, Holder]) -> None:
        self._holders = dict(holders)
        #: Hashes of tokens that came, and are fit to be used.
        self._fit: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._holders)

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Everybody who holds one."""
        return tuple(self._holders.values())

    def holder(self, token: str) -> Holder | None:
        """Return who holds a token; None where nobody does, or where it could be guessed."""
        digest, holder = token_hash(token), None
        for known, one in self._holders.items():
            if hmac.compare_digest(known, digest):
                holder = one  # and go on: how long it takes does not depend on which it is
        if holder is not None and digest not in self._fit:
            if weakness(token):
                return None
            self._fit.add(digest)
        return holder
