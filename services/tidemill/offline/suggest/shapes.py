"""Patterns of texts: which kind of character stands at each place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_CLASSES = ("A-Z", "a-z", "0-9", "0-9a-f", "0-9A-F", "A-Z0-9", "a-z0-9", "A-Za-z0-9")
#: No pattern is looked for in longer texts.
MAX_PATTERN_CHARACTERS = 64


def shape_of(text: str) -> str:
    """Return a text with a letter for each kind of character: UA1545 is AA9999."""
    return "".join("A" if c.isupper() else "a" if c.islower() else "9" if c.isdigit() else c for c in text)


def pattern_of(texts: Sequence[str], max_share: float) -> str | None:
    """Return a regular expression of texts that, but for a few, have one length and one kind of character a place."""
    length, times = Counter(map(len, texts)).most_common(1)[0]
    if not 0 < length <= MAX_PATTERN_CHARACTERS or times < (1 - 2 * max_share) * len(texts):
        return None
    alike, parts = [text for text in texts if len(text) == length], []
    for characters in zip(*alike, strict=True):
        part = _class(Counter(characters), 2 * max_share * len(alike))
        if part is None:
            return None
        parts.append(part)
    pattern, at = "", 0
    while at < length:
        many = next((i for i in range(at, length) if parts[i] != parts[at]), length) - at
        pattern += parts[at] + (f"{{{many}}}" if many > 1 else "")
        at += many
    return pattern if "[" in pattern else None


def _class(counts: Counter[str], slips: float) -> str | None:
    """Return the narrowest class of characters that has all but a few slips; of punctuation, the character itself."""
    character, times = counts.most_common(1)[0]
    total = sum(counts.values())
    if not character.isalnum():
        return re.escape(character) if total - times <= slips else None
    for name in _CLASSES:
        if sum(n for c, n in counts.items() if re.fullmatch(f"[{name}]", c) is None) <= slips:
            return f"[{name}]"
    return None
