"""``riskstream topics``: create the topics, or compare them with the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from stream.errors import TopicMismatchError
from stream.settings import load_settings

if TYPE_CHECKING:
    from stream.kafka.topics import TopicSpec
    from stream.settings import Settings

__all__ = ["check", "create", "topics"]


@click.group()
def topics() -> None:
    """Create the topics, or check existing ones."""


@topics.command()
def create() -> None:
    """Create the missing topics, then check all of them.

    Existing topics are never changed. The exit status is 4 if a topic differs from the settings.
    """
    from stream.kafka.admin import create_topics

    settings = load_settings()
    _report(settings, set(create_topics(settings)))


@topics.command()
def check() -> None:
    """Compare the topics with the settings; exits with 4 where they differ."""
    _report(load_settings(), set())


def _report(settings: Settings, created: set[str]) -> None:
    """Print a line for each topic, and raise if one differs from the settings."""
    from stream.kafka.admin import topic_states

    found = topic_states(settings)
    wrong = [name for name, (_, problems, _) in found.items() if problems]
    for name, (spec, problems, notes) in found.items():
        state = "FAIL" if problems else "created" if name in created else "note" if notes else "ok"
        print(f"{state:<5} {name}: {'; '.join([*problems, *notes]) or _shape(spec)}")
    if wrong:
        raise TopicMismatchError(
            f"{len(wrong)} of {len(found)} topics differ from the settings: create missing topics "
            "with 'riskstream topics create'; for the others, change the topic, or "
            "RISKSTREAM_TOPICS__*"
        )


def _shape(spec: TopicSpec) -> str:
    config = "".join(f" {name}={value}" for name, value in {**spec.config, **spec.durability}.items())
    return f"partitions={spec.partitions} replication={spec.replication_factor}{config}"
