"""``POST /predict`` on a worker: the live state of its own partitions, and other workers for theirs.

Faust's table route does not serve here: its router forwards a request without its body, and the route belongs
to Faust's web server, which answers for any assigned partition, restored or not. Its source is used all the
same: the assignor's metadata, which contains each partition's owner and its address.

Everything runs on the event loop between two steps of the stream, so that a request never sees half a
micro-batch; a large request yields to the stream again and again.

The worker that owns the user scores the transaction. With entity profiles it first sends requests to the
owners of entities on other workers, all at once, by ``POST /profiles``: the concatenated requests of
:mod:`stream.pipeline.entity_join.messages`, answered with features as float64. Then it reads its own
entities, the user's history and the user's log, all between the same two steps. Nothing synchronises the
workers: their responses are some milliseconds apart, and as in the stream one entity may have seen a
transaction that another has not.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import defaultdict, deque
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiohttp
import numpy as np
import orjson
from aiohttp import web

from stream.errors import InvalidRecordError, NewerFormatError, StateError
from stream.kafka.partitioner import partition_of
from stream.pipeline.effects import gather
from stream.pipeline.entity_join.messages import CODES
from stream.pipeline.entity_join.messages import partition_of as entity_partition
from stream.serving.http import guard, listen
from stream.serving.predict import ScoringService, Unavailable, problem, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from stream.jit import Floats
    from stream.pipeline.entity_join.messages import EntityRequest
    from stream.pipeline.entity_join.preview import ProfilePreview
    from stream.pipeline.preview import Preview
    from stream.serving.predict import PredictRequest
    from stream.settings import Partitioner, ScoringSettings
    from stream.state.store import StateReader

__all__ = ["ONLY_HEADER", "SPEC_HEADER", "PredictForwarder"]


logger = logging.getLogger(__name__)
_Read = TypeVar("_Read")

#: Header of a forwarded request: the indexes of the transactions to score. Its receiver forwards nothing.
ONLY_HEADER: Final = "X-RiskStream-Only"

#: Header of requests about entities: the hash of the feature spec.
SPEC_HEADER: Final = "X-RiskStream-Spec"

#: Transactions scored in one go, about ten milliseconds at most; the stream's steps come in between.
_SLICE: Final = 8

#: Keys remembered, one of each fetch, to detect how producers choose partitions.
_NOTICED: Final = 64

_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared with, not bound


class PredictForwarder:
    """A worker's scoring endpoint.

    Parameters
    ----------
    partitions, partitioner
        Number of partitions of the source, and how producers choose one.
    reader
        Returns a reader of a partition's state, None if this worker does not own the partition or has not
        restored it.
    owners
        Returns the address of each partition's worker, from the consumer group's metadata.
    on_request
        Called with the outcome of each request and its duration in seconds.

    Raises
    ------
    ConfigError
        On start, if the address cannot be bound.
    """

    def __init__(
        self,
        settings: ScoringSettings,
        partitions: int,
        partitioner: Partitioner,
        preview: Preview,
        reader: Callable[[int], StateReader | None],
        owners: Callable[[], dict[int, str]],
        on_request: Callable[[str, float], None],
    ) -> None:
        self._settings = settings
        self._partitions = partitions
        self._partitioner = partitioner
        self._preview = preview
        self._reader = reader
        self._owners = owners
        self._service = ScoringService(
            preview, self._score, max_batch=settings.max_batch, on_request=on_request
        )
        self._runner: web.AppRunner | None = None
        self._client: aiohttp.ClientSession | None = None
        #: Of the keys seen last, whether the configured partitioner puts them elsewhere.
        self._elsewhere: deque[bool] = deque(maxlen=_NOTICED)
        #: Address for other workers; empty until started.
        self.address = ""

    async def start(self) -> None:
        """Bind and serve."""
        host = self._settings.host
        application = self._service.application(guard(self._settings.wanted_token))
        if self._preview.profiles is not None:
            application.router.add_post("/profiles", partial(self._serve_profiles, self._preview.profiles))
        self._runner, port = await listen(
            application, host, self._settings.port, option="RISKSTREAM_SCORING__PORT"
        )
        self._client = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._settings.forward_timeout_seconds)
        )
        host_name = self._settings.advertised_host or (socket.gethostname() if host in _ANY_ADDRESS else host)
        self.address = f"http://{f'[{host_name}]' if ':' in host_name else host_name}:{port}"
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
        """Check with a key of each fetch that producers use the configured partitioner.

        With another partitioner, users would be looked up on the wrong partition and appear as new users.
        """
        key = next((key for key in keys if key is not None), None)
        if key is not None:
            self._elsewhere.append(self._partition_of(key) != partition)

    @property
    def _misled(self) -> bool:
        """Whether the configured partitioner puts most of the recent keys elsewhere."""
        return 2 * sum(self._elsewhere) > len(self._elsewhere)

    def _partition_of(self, key: bytes) -> int:
        return partition_of(key, self._partitions, self._partitioner)

    async def _score(self, predict_request: PredictRequest) -> list[dict[str, Any]]:
        """Return the results of a request, from here and from other workers.

        Raises
        ------
        Unavailable
            A history or an entity's log is moving between workers, or its worker does not answer.
        """
        if self._misled:
            raise Unavailable(
                0,
                "producers choose partitions with another hash than "
                f"RISKSTREAM_TOPICS__PARTITIONER={self._partitioner}: set it to theirs",
            )
        only = _only(predict_request)
        indexes = range(len(predict_request.rows)) if only is None else only
        parts: dict[int, list[int]] = {}
        for index in indexes:
            partition = self._partition_of(predict_request.keys[index])
            parts.setdefault(partition, []).append(index)
        here: dict[int, list[int]] = {}
        away: dict[str, list[int]] = {}
        for partition, part in parts.items():
            if self._reader(partition) is not None:
                here[partition] = part
                continue
            if only is not None:
                raise _on_its_way(partition, part[0], "histories")
            away.setdefault(self._owner(partition, part[0], "histories"), []).extend(part)
        forwarded = [self._forward(owner, sorted(wanted), predict_request) for owner, wanted in away.items()]
        found: dict[int, dict[str, Any]] = {}
        for profile_responses in await asyncio.gather(self._score_here(here, predict_request), *forwarded):
            found |= profile_responses
        return [found[index] for index in indexes]

    def _owner(self, partition: int, index: int, description: str) -> str:
        """Return the address of another worker that owns a partition."""
        owner = self._owners().get(partition)
        if owner is None or owner == self.address:
            raise _on_its_way(partition, index, description)
        return owner

    @contextmanager
    def _reading(self, partition: int, index: int, description: str) -> Iterator[StateReader]:
        """Provide a reader of a partition, valid until control returns to the event loop."""
        reader = self._reader(partition)
        if reader is None:
            raise _on_its_way(partition, index, description)
        try:
            yield reader
        except (StateError, NewerFormatError) as error:
            # The stream will meet the same, and end the worker with it.
            logger.warning("%s cannot be read: %s", description, error)
            raise Unavailable(index, f"the {description} of partition {partition} cannot be read") from error

    async def _score_here(
        self, parts: dict[int, list[int]], predict_request: PredictRequest
    ) -> dict[int, dict[str, Any]]:
        """Score transactions of this worker's users, given by partition as indexes."""
        mine, profile_responses = await self._request_profiles(
            [index for part in parts.values() for index in part], predict_request
        )
        found: dict[int, dict[str, Any]] = {}
        for partition, part in parts.items():
            for start in range(0, len(part), _SLICE):
                some = part[start : start + _SLICE]
                if found:
                    await asyncio.sleep(0)
                for item, features in self._respond([item for index in some for item in mine.get(index, ())]):
                    profile_responses[item.pending_id][item.entity] = features
                with self._reading(partition, some[0], "histories") as reader:
                    rows = [predict_request.rows[index] for index in some]
                    scored = self._preview.score(rows, reader, [profile_responses[index] for index in some])
                found |= dict(zip(some, scored, strict=True))
        return found

    async def _request_profiles(
        self, indexes: list[int], predict_request: PredictRequest
    ) -> tuple[dict[int, list[EntityRequest]], defaultdict[int, dict[int, Floats]]]:
        """Request profiles from other workers, all at once.

        Returns the requests for this worker by the index of their transaction, and the responses of the
        others by index and entity code.
        """
        mine: dict[int, list[EntityRequest]] = {}
        profile_responses: defaultdict[int, dict[int, Floats]] = defaultdict(dict)
        profiles = self._preview.profiles
        if profiles is None:
            return mine, profile_responses
        away: dict[str, list[EntityRequest]] = {}
        requests = [
            request for index in indexes for request in profiles.requests(predict_request.rows[index], index)
        ]
        for partition, some in self._by_partition(requests).items():
            if self._reader(partition) is None:
                owner = self._owner(partition, some[0].pending_id, "profiles")
                away.setdefault(owner, []).extend(some)
                continue
            for request in some:
                mine.setdefault(request.pending_id, []).append(request)
        forwarded = [
            self._request_from(profiles, owner, wanted, predict_request) for owner, wanted in away.items()
        ]
        for wanted, found in zip(away.values(), await asyncio.gather(*forwarded), strict=True):
            for request, features in zip(wanted, found, strict=True):
                profile_responses[request.pending_id][request.entity] = features
        return mine, profile_responses

    def _by_partition(self, requests: Iterable[EntityRequest]) -> dict[int, list[EntityRequest]]:
        return gather((entity_partition(request.name, self._partitions), [request]) for request in requests)

    def _respond(self, requests: Sequence[EntityRequest]) -> Iterator[tuple[EntityRequest, Floats]]:
        """Yield the requests to this worker's entities, by partition, each with its features."""
        profiles = self._preview.profiles
        for partition, some in self._by_partition(requests).items():
            assert profiles is not None  # who asks?
            with self._reading(partition, some[0].pending_id, "profiles") as reader:
                yield from zip(some, profiles.read_profile(some, reader), strict=True)

    async def _serve_profiles(self, profiles: ProfilePreview, request: web.Request) -> web.Response:
        """Respond to another worker's requests; this worker forwards none of them."""
        if request.headers.get(SPEC_HEADER) != profiles.spec_hash:
            return refuse(
                [
                    {
                        "loc": [],
                        "msg": "the workers' models differ; wait until all workers have the same model",
                    }
                ],
                503,
            )
        try:
            requests = profiles.decode(await request.read())
            most = len(CODES) * self._settings.max_batch
            if len(requests) > most:
                raise InvalidRecordError("$", f"must hold up to {most} requests, not {len(requests)}")
            found: dict[EntityRequest, Floats] = {}
            for start in range(0, len(requests), _SLICE):
                if start:
                    await asyncio.sleep(0)
                found |= dict(self._respond(requests[start : start + _SLICE]))
        except InvalidRecordError as error:
            return refuse([problem(error)], 422)
        except Unavailable as error:
            return refuse([{"loc": ["body"], "msg": error.reason}], 503)
        features = np.concatenate([found[request] for request in requests])
        return web.Response(body=features.tobytes(), content_type="application/octet-stream")

    async def _request_from(
        self,
        profiles: ProfilePreview,
        owner: str,
        requests: list[EntityRequest],
        predict_request: PredictRequest,
    ) -> list[Floats]:
        """Return another worker's response about its entities."""
        return await self._hand_on(
            f"{owner}/profiles",
            (requests[0].pending_id, "profiles"),
            b"".join(request.encode().value or b"" for request in requests),
            {SPEC_HEADER: profiles.spec_hash, "Content-Type": "application/octet-stream"},
            predict_request,
            partial(profiles.split, requests),
        )

    async def _forward(
        self, owner: str, indexes: list[int], predict_request: PredictRequest
    ) -> dict[int, dict[str, Any]]:
        """Forward a request to another worker for its users, with the original bytes."""

        def read(value: bytes) -> dict[int, dict[str, Any]]:
            answer = orjson.loads(value)
            return dict(zip(indexes, answer if isinstance(answer, list) else [answer], strict=True))

        headers = {ONLY_HEADER: ",".join(map(str, indexes)), "Content-Type": "application/json"}
        return await self._hand_on(
            f"{owner}/predict", (indexes[0], "history"), predict_request.body, headers, predict_request, read
        )

    async def _hand_on(
        self,
        url: str,
        about: tuple[int, str],
        body: bytes,
        headers: dict[str, str],
        predict_request: PredictRequest,
        read: Callable[[bytes], _Read],
    ) -> _Read:
        """Return another worker's response, parsed by ``read``.

        Raises
        ------
        Unavailable
            The worker does not answer, or its response is malformed; the error names the partition and the
            user or entity.
        """
        if "Authorization" in predict_request.headers:
            headers["Authorization"] = predict_request.headers["Authorization"]
        assert self._client is not None
        try:
            async with self._client.post(url, data=body, headers=headers) as response:
                answer = await response.read()
                if response.status == HTTPStatus.OK:
                    return read(answer)
                reason = _reason(response.status, answer)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
        index, message = about
        owner = url.rpartition("/")[0]
        raise Unavailable(index, f"the worker at {owner}, which owns the {message}, responded: {reason}")


def _on_its_way(partition: int, index: int, description: str) -> Unavailable:
    return Unavailable(index, f"the {description} of partition {partition} are being moved or restored")


def _only(predict_request: PredictRequest) -> list[int] | None:
    """Return the indexes that another worker asks for, None if a client asks for all transactions.

    Raises
    ------
    InvalidRecordError
        The header is not a list of indexes.
    """
    header = predict_request.headers.get(ONLY_HEADER)
    if header is None:
        return None
    try:
        indexes = [int(text) for text in header.split(",")]
    except ValueError:
        indexes = [-1]
    if not set(indexes) <= set(range(len(predict_request.rows))):
        raise InvalidRecordError(ONLY_HEADER, "must contain indexes of transactions in the request")
    return indexes


def _reason(status: int, body: bytes) -> str:
    """Return the error in another worker's response."""
    try:
        answer = orjson.loads(body)
    except ValueError:
        return f"HTTP {status}"
    detail = answer.get("detail") if isinstance(answer, dict) else None
    return str(detail[0]["msg"] if detail else answer)
