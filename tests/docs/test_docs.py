"""What the pages for people name is there: settings, verbs, options, metrics, files, chapters, make's targets."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
import pytest
from pydantic import BaseModel

from stream.cli import _cli
from stream.settings import Settings, _known_variables
from support.pages import PAGES, ROOT, code_in

if TYPE_CHECKING:
    from collections.abc import Iterator


#: The changelog names what is no longer there, too.
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]


@pytest.fixture(params=CURRENT, ids=lambda path: str(path.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def anchors_of(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands_in(text: str) -> Iterator[tuple[list[str], click.Command]]:
    """Yield each ``riskstream ...`` and the command that its verbs name."""
    for code in code_in(text):
        for found in re.findall(r"(?:^|/|worker |worker-0 -- |exec )riskstream ([a-z][^#&|;)]*)", code):
            words = found.split()
            command: click.Command = _cli
            while isinstance(command, click.Group) and words:
                verb = words.pop(0)
                inner = command.get_command(click.Context(command), verb)
                assert inner is not None, f"there is no {verb!r} in {found!r}"
                command = inner
            yield words, command


def test_settings_are_known(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"\bRISKSTREAM_\w*\w", text)) - {"RISKSTREAM_"} <= _known_variables()
    # `…__SASL_USERNAME` follows a whole name, and is of its section.
    prefix = ""
    for whole, short in re.findall(r"`(RISKSTREAM_\w+?__)\w+|`…__(\w+)", text):
        prefix = whole or prefix
        assert not short or f"{prefix}{short}" in _known_variables()
    known = sections(Settings)
    for section, name in re.findall(r"`(\w+)\.(\w+)`", text):
        if section in known and name != "py":
            assert name in known[section].model_fields, f"{section}.{name}"


def test_verbs_and_options_exist(page: Path) -> None:
    for words, command in commands_in(page.read_text(encoding="utf-8")):
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known, f"{command.name}: {used - known}"


def test_choices_are_such(page: Path) -> None:
    for words, command in commands_in(page.read_text(encoding="utf-8")):
        options = {option: parameter for parameter in command.params for option in parameter.opts}
        for word, value in itertools.pairwise(words):
            kind = options[word].type if word in options else None
            if isinstance(kind, click.Choice):
                assert value in kind.choices, f"{command.name} {word} {value}"


def test_make_has_the_targets(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        found
        for code in code_in(page.read_text(encoding="utf-8"))
        for found in re.findall(r"^make ([a-z-]+)", code)
    }
    assert named <= targets


def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_of(file), target


def test_files_exist(page: Path) -> None:
    """Of the repository's folders; what a command makes lies in ``var``."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {name.partition("/")[0] for name in tracked if "/" in name}
    there = {*tracked, *(str(parent) for name in tracked for parent in Path(name).parents)}
    for code in code_in(page.read_text(encoding="utf-8")):
        for found in re.findall(r"(?<![\w/.:-])((?:[\w.-]+/)+[\w.*-]*)", code):
            name = found.rstrip("/.")
            if name.partition("/")[0] in top and "*" not in name:
                assert name in there, f"{found} in {code!r}"


def test_modules_that_are_run_exist(page: Path) -> None:
    for code in code_in(page.read_text(encoding="utf-8")):
        for module in re.findall(r"python -m (\w[\w.]*)", code):
            if module.partition(".")[0] in {"benchmarks", "stream", "offline"}:
                path = ROOT / module.replace(".", "/")
                assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_metrics_exist(page: Path) -> None:
    written = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")  # generated
    known = set(re.findall(r"^\| `(riskstream_\w+)`", written, re.MULTILINE))
    for code in code_in(page.read_text(encoding="utf-8")):
        for name in re.findall(r"(?<![\w:.-])(riskstream_\w+)", code):
            assert re.sub(r"_(bucket|sum|count)$", "", name) in known, name


def test_levels_are_such() -> None:
    text = (ROOT / "docs/how-to/operations.md").read_text(encoding="utf-8")
    levels = set(get_args(Settings.model_fields["alert_level"].annotation))
    named = set(re.findall(r"RISKSTREAM_ALERT_LEVEL=(\w+)", text))
    assert named
    assert named <= levels


def test_the_readme_repeats_figures_of_the_benchmarks() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("## Benchmarks")[2].partition("\n\n|")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[2:4]] for line in table.splitlines()[2:]]
    assert len(rows) > 3
    page = (ROOT / "docs/explanation/performance.md").read_text(encoding="utf-8")
    written = re.search(r"<!-- bench -->.*?<!-- /bench -->", page, re.DOTALL)
    assert written is not None
    for figure in re.findall(r"\d[\d,.]*", " ".join(itertools.chain.from_iterable(rows))):
        assert re.search(rf"(?<![\d,.]){re.escape(figure)}(?![\d,.])", written[0]), figure


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", index)}
    for page in (ROOT / "docs").rglob("*.md"):
        if page.name != "README.md" and page.parent.name != "adr":
            assert page.resolve() in linked, page
    records = (ROOT / "docs/adr/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs/adr").glob("[0-9]*.md"):
        assert f"({page.name})" in records
