"""Card numbers (PANs) have no place in ids: PCI DSS forbids to store them in clear.

An id is taken for a card number if it has 13 to 19 digits, between them at most spaces and hyphens, begins
like the numbers of a card scheme, and passes the Luhn check. Of random ids of 16 digits, 3 % do.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from stream.errors import InvalidRecordError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stream.events.decode import TransactionRow
    from stream.events.models import Label
    from stream.events.records import ConsumerRecord

__all__ = ["MASKED", "CardNumberPolicy", "CardNumbers", "is_card_number", "mask"]

#: What happens to a transaction with a card number as an id.
CardNumberPolicy = Literal["refuse", "hmac", "allow"]

_FEWEST_DIGITS: Final = 13
_MOST_DIGITS: Final = 19

#: How the numbers of the schemes begin, by their length: Visa, Mastercard, American Express, Diners Club,
#: Discover, JCB, UnionPay, Maestro.
_MASTERCARD: Final = r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"
_DISCOVER: Final = r"6011|64[4-9]|65"
_JCB: Final = r"352[89]|35[3-8]"
_LONG: Final = r"62|5[06]|63|67"
_SCHEMES: Final = {
    13: r"4",
    14: r"30|3[689]",
    15: r"3[47]",
    16: rf"4|{_MASTERCARD}|{_DISCOVER}|{_JCB}|{_LONG}",
    17: _LONG,
    18: _LONG,
    19: rf"4|{_DISCOVER}|{_LONG}",
}
_BEGINS: Final = {length: re.compile(f"(?:{text})", re.ASCII).match for length, text in _SCHEMES.items()}

_SHAPE: Final = re.compile(r"\d(?:[ -]?\d){12,18}", re.ASCII).fullmatch
_IN_TEXT: Final = re.compile(rb"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
_SEPARATORS: Final = str.maketrans("", "", " -")

#: Digits become 1, everything else 0.
_ARE_DIGITS: Final = bytes(int(48 <= code <= 57) for code in range(256))  # noqa: PLR2004 - "0" to "9"
_RUN: Final = b"\1" * _FEWEST_DIGITS

#: Digits at both ends that a masked number keeps, as PCI DSS allows.
_SHOWN_FIRST: Final = 6
_SHOWN_LAST: Final = 4

#: What the reason of a dead letter with masked card numbers ends with.
MASKED: Final = "; card numbers masked"

_FIELDS: Final = ("transaction_id", "user_id", "merchant_id", "card_id", "device_id")
_ids_of: Final = attrgetter(*_FIELDS)
_LABEL_FIELDS: Final = ("transaction_id", "user_id")

_REASON: Final = "is a card number: send a token, or see RISKSTREAM_CARD_NUMBERS__POLICY"


def is_card_number(text: str) -> bool:
    """Return whether an id is a card number.

    Examples
    --------
    >>> [is_card_number(text) for text in ("4111 1111 1111 1111", "4111111111111112", "1769860800000")]
    [True, False, False]
    """
    if not _FEWEST_DIGITS <= len(text) <= 2 * _MOST_DIGITS or _SHAPE(text) is None:
        return False
    return _is_number(text.translate(_SEPARATORS))


def _is_number(digits: str) -> bool:
    begins = _BEGINS.get(len(digits))
    if begins is None or begins(digits) is None:
        return False
    values = [int(digit) for digit in reversed(digits)]
    doubled = sum(sum(divmod(2 * value, 10)) for value in values[1::2])
    return (sum(values[::2]) + doubled) % 10 == 0


def mask(data: bytes) -> bytes:
    """Return bytes with every card number reduced to its first six and last four digits.

    Examples
    --------
    >>> mask(b'{"user_id": "4111111111111111"}')
    b'{"user_id": "411111******1111"}'
    """
    if _RUN not in data.translate(_ARE_DIGITS, b" -"):
        return data
    return _IN_TEXT.sub(_masked, data)


def _replaced(row: TransactionRow, changes: dict[str, Any]) -> TransactionRow:
    return row._replace(**changes)


def _masked(found: re.Match[bytes]) -> bytes:
    text = found[0].decode()
    digits = text.translate(_SEPARATORS)
    if not _is_number(digits):
        return found[0]
    hidden = "*" * (len(digits) - _SHOWN_FIRST - _SHOWN_LAST)
    return f"{digits[:_SHOWN_FIRST]}{hidden}{digits[-_SHOWN_LAST:]}".encode()


class CardNumbers:
    """Finds card numbers in ids, and refuses or replaces them.

    Parameters
    ----------
    policy
        ``refuse`` a transaction, replace the id by an ``hmac``, or ``allow`` it.
    key
        The key of the HMACs, with the policy ``hmac``.
    """

    def __init__(self, policy: CardNumberPolicy = "refuse", key: bytes = b"") -> None:
        self.policy: Final = policy
        self._key = key

    def token(self, number: str) -> str:
        """Return what stands for a card number: the same for every spelling of it."""
        digits = number.translate(_SEPARATORS).encode()
        return "pan-" + hmac.new(self._key, digits, hashlib.sha256).hexdigest()[:32]

    def replaced(self, name: str, text: str) -> str:
        """Return an id, replaced if it is a card number.

        Raises
        ------
        InvalidRecordError
            It is one, and the policy is to refuse it.
        """
        if self.policy == "allow" or not is_card_number(text):
            return text
        if self.policy == "refuse":
            raise InvalidRecordError(name, _REASON)
        return self.token(text)

    def may_be_in(self, rows: Iterable[TransactionRow]) -> bool:
        """Return whether an id of these transactions may be a card number; fast, for whole batches."""
        if self.policy == "allow":
            return False
        texts = "\n".join(filter(None, chain.from_iterable(map(_ids_of, rows))))
        return _RUN in texts.encode().translate(_ARE_DIGITS, b" -")

    def row(self, row: TransactionRow) -> TransactionRow:
        """Return a transaction without card numbers in its ids.

        Raises
        ------
        InvalidRecordError
            There is one, and the policy is to refuse it.
        """
        changes = self._changes(row, _FIELDS)
        return _replaced(row, changes) if changes else row

    def label(self, label: Label, record: ConsumerRecord) -> tuple[Label, ConsumerRecord]:
        """Return a label and its record without card numbers in the label's ids.

        Raises
        ------
        InvalidRecordError
            There is one, and the policy is to refuse it.
        """
        changes = self._changes(label, _LABEL_FIELDS)
        if not changes:
            return label, record
        label = label.model_copy(update=changes)
        return label, record._replace(key=label.user_id.encode(), value=None)

    def record(self, row: TransactionRow, record: ConsumerRecord) -> tuple[TransactionRow, ConsumerRecord]:
        """Return a transaction and its record without card numbers in the ids.

        Raises
        ------
        InvalidRecordError
            There is one, and the policy is to refuse it, or the record spells it in an unusual way.
        """
        changes = self._changes(row, _FIELDS)
        if not changes:
            return row, record
        value = record.value or b""
        for name, token in changes.items():
            value = value.replace(orjson.dumps(getattr(row, name)), orjson.dumps(token))
        if mask(value) != value:
            raise InvalidRecordError(min(changes), _REASON)
        replaced = _replaced(row, changes)
        return replaced, record._replace(key=replaced.user_id.encode(), value=value)

    def _changes(self, event: Any, names: Sequence[str]) -> dict[str, str]:
        changes = {}
        for name in names:
            text = getattr(event, name)
            if text is not None and (token := self.replaced(name, text)) != text:
                changes[name] = token
        return changes
