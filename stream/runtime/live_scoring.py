"""``POST /predict`` on a worker: the live histories of its own partitions, and other workers for theirs.

Faust's own table route cannot serve here: its router forwards a request without its body, and a route belongs
to Faust's web server, which answers for any partition that is assigned, restored or not. What it goes by is
used all the same: the assignor's metadata, where every worker finds each partition's owner and its address.

Everything happens on the event loop and between two of the stream's steps, so that a history is never half of
one round and half of the next; a large request makes room for the stream again and again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import aiohttp
import orjson
from aiokafka.partitioner import murmur2

from stream.errors import InvalidRecordError, StateError
from stream.runtime.endpoint import guard, listen
from stream.runtime.scoring_service import ScoringService, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aiohttp import web

    from stream.features.history import RecordReader
    from stream.intake import Row
    from stream.preview import Preview
    from stream.runtime.scoring_service import Asked
    from stream.settings import ScoringSettings

__all__ = ["LiveScoring", "partition_of"]

logger = logging.getLogger(__name__)

#: Says which of a forwarded request's transactions are asked about, by their places; whoever is asked so asks
#: nobody else.
ONLY_HEADER: Final = "X-RiskStream-Only"

#: Scored in one go, some ten milliseconds at the very most: the stream's own turns come in between.
_SLICE: Final = 8

#: So many keys are remembered, one of each fetch, to see how producers choose partitions.
_NOTICED: Final = 64

_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound
_MAX_INT32: Final = 0x7FFFFFFF


def partition_of(key: bytes, partitions: int, partitioner: str) -> int:
    """Return the partition that producers with such a partitioner choose for a key."""
    hashed = murmur2(key) & _MAX_INT32 if partitioner == "murmur2" else crc32(key)
    return int(hashed % partitions)


class LiveScoring:
    """A worker's scoring endpoint.

    Parameters
    ----------
    partitions
        How many the source has.
    reader
        Returns what reads a partition's histories now, None where they are not this worker's or not restored.
    owners
        Returns the address of each partition's worker, as the consumer group knows it.
    told
        Called with how each request ended and the seconds that it took.

    Raises
    ------
    ConfigError
        On start, where the address cannot be bound.
    """

    def __init__(
        self,
        settings: ScoringSettings,
        partitions: int,
        preview: Preview,
        reader: Callable[[int], RecordReader | None],
        owners: Callable[[], dict[int, str]],
        told: Callable[[str, float], None],
    ) -> None:
        self._settings = settings
        self._partitions = partitions
        self._preview = preview
        self._reader = reader
        self._owners = owners
        self._service = ScoringService(preview, self._score, max_batch=settings.max_batch, told=told)
        self._runner: web.AppRunner | None = None
        self._client: aiohttp.ClientSession | None = None
        #: Of the keys seen last, whether they lie elsewhere than the settings say.
        self._elsewhere: deque[bool] = deque(maxlen=_NOTICED)
        #: Where other workers reach this one; empty until started.
        self.address = ""

    async def start(self) -> None:
        """Bind and serve."""
        host = self._settings.host
        self._runner, port = await listen(
            self._service.application(guard(self._settings.wanted_token)),
            host,
            self._settings.port,
            option="RISKSTREAM_SCORING__PORT",
        )
        self._client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._settings.forward_timeout_seconds)
        )
        told = self._settings.advertised_host or (socket.gethostname() if host in _ANY_ADDRESS else host)
        self.address = f"http://{f'[{told}]' if ':' in told else told}:{port}"
        logger.info("scores on %s/predict", self.address)

    async def stop(self) -> None:
        """Stop serving."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def notice(self, partition: int, keys: Iterable[bytes | None]) -> None:
        """See whether producers choose partitions as the settings say, by a key of each fetch.

        Where they do not, users would be looked for where they are not, and be taken for new ones.
        """
        key = next((key for key in keys if key is not None), None)
        if key is not None:
            self._elsewhere.append(self._partition_of(key) != partition)

    @property
    def _misled(self) -> bool:
        """Whether most of the keys seen of late lie elsewhere than the settings say."""
        return 2 * sum(self._elsewhere) > len(self._elsewhere)

    def _partition_of(self, key: bytes) -> int:
        return partition_of(key, self._partitions, self._settings.partitioner)

    async def _score(self, asked: Asked) -> list[dict[str, Any]]:
        """Return the answers to a request, from here and from other workers.

        Raises
        ------
        Unavailable
            A history is on its way from one worker to another, or its worker does not answer.
        """
        if self._misled:
            raise Unavailable(
                0,
                "producers choose partitions otherwise than by "
                f"RISKSTREAM_SCORING__PARTITIONER={self._settings.partitioner}: set it as they do",
            )
        only = _only(asked)
        places = range(len(asked.rows)) if only is None else only
        parts: dict[int, list[int]] = {}
        for place in places:
            partition = self._partition_of(asked.rows[place].user_id.encode())
            parts.setdefault(partition, []).append(place)
        found: dict[int, dict[str, Any]] = {}
        away: dict[str, list[int]] = {}
        for partition, part in parts.items():
            if self._reader(partition) is not None:
                found |= await self._score_here(partition, part, asked.rows)
                continue
            owner = self._owners().get(partition)
            if only is not None or owner is None or owner == self.address:
                raise Unavailable(
                    part[0], f"the histories of partition {partition} are being moved or restored"
                )
            away.setdefault(owner, []).extend(part)
        asking = [self._ask(owner, sorted(wanted), asked) for owner, wanted in away.items()]
        for answers in await asyncio.gather(*asking):
            found |= answers
        return [found[place] for place in places]

    async def _score_here(
        self, partition: int, places: list[int], rows: Sequence[Row]
    ) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(places), _SLICE):
            some = places[start : start + _SLICE]
            if start:
                await asyncio.sleep(0)
            reader = self._reader(partition)
            if reader is None:
                raise Unavailable(some[0], f"the histories of partition {partition} are being moved")
            try:
                answers = self._preview.score([rows[place] for place in some], reader)
            except StateError as error:
                # The stream will meet the same, and end the worker with it.
                logger.warning("a history cannot be read: %s", error)
                raise Unavailable(
                    some[0], f"the histories of partition {partition} cannot be read"
                ) from error
            found |= dict(zip(some, answers, strict=True))
        return found

    async def _ask(self, owner: str, places: list[int], asked: Asked) -> dict[int, dict[str, Any]]:
        """Let another worker answer for its users, from the very bytes that came."""
        headers = {ONLY_HEADER: ",".join(map(str, places)), "Content-Type": "application/json"}
        if "Authorization" in asked.headers:
            headers["Authorization"] = asked.headers["Authorization"]
        assert self._client is not None
        try:
            async with self._client.post(f"{owner}/predict", data=asked.body, headers=headers) as response:
                answer = orjson.loads(await response.read())
                if response.status == HTTPStatus.OK:
                    answers = answer if isinstance(answer, list) else [answer]
                    return dict(zip(places, answers, strict=True))
                reason = _reason(answer)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
        raise Unavailable(places[0], f"the worker at {owner}, which has the history, says: {reason}")


def _only(asked: Asked) -> list[int] | None:
    """Return which transactions another worker asks about, None where a client asks about all.

    Raises
    ------
    InvalidRecordError
        The header is not a list of places.
    """
    header = asked.headers.get(ONLY_HEADER)
    if header is None:
        return None
    try:
        places = [int(text) for text in header.split(",")]
    except ValueError:
        places = [-1]
    if not set(places) <= set(range(len(asked.rows))):
        raise InvalidRecordError(ONLY_HEADER, "must name places in the request")
    return places


def _reason(answer: Any) -> str:
    """Return what another worker says is the matter."""
    detail = answer.get("detail") if isinstance(answer, dict) else None
    return str(detail[0]["msg"] if detail else answer)
