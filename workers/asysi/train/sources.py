"""The inventory of sources: `docs/sources.yaml` becomes the tables of TECH_SPEC.md and a list of tasks."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from asysi.contract.errors import ConfigError
from asysi.contract.loading import read, sentences
from asysi.contract.mistakes import problem_of
from asysi.files import write_atomic
from asysi.train.config import ConfigPart

SOURCES = Path("docs/sources.yaml")
SPECIFICATION = Path("TECH_SPEC.md")
TASKS = (Path("docs/tasks.md"), Path("docs/tasks.json"))
BEGIN, END = "<!-- sources: begin -->", "<!-- sources: end -->"
Grade = Annotated[int, Field(ge=0, le=5)]


class SourceMapping(ConfigPart):
    """How a component is used in this project."""

    target: str
    """Module of this project."""
    reuse: Literal["as-is", "adapt", "rewrite", "concept"]
    """How it is used."""
    effort_days: Annotated[float, Field(ge=0)]
    """Effort in days."""
    risks: list[str] = Field(default_factory=list)
    """Risks."""


class SourceComponent(ConfigPart):
    """A used part of a source."""

    path: str
    """File, module or section in the source."""
    purpose: str
    """What it does."""
    deps: list[str] = Field(default_factory=list)
    """Its dependencies."""
    issues: list[str] = Field(default_factory=list)
    """Its problems for this purpose."""
    mapping: SourceMapping


class SourceEntry(ConfigPart):
    """A repository, package, paper or data set that the project uses."""

    id: Annotated[str, Field(pattern=r"^S[0-9]+$")]
    """`S` and a number."""
    type: Literal["repo", "package", "paper", "dataset"]
    """What it is."""
    name: str
    url: str
    license: str
    """SPDX identifier, or N/A for a paper."""
    version: str
    """Version or commit."""
    tags: list[str] = Field(default_factory=list)
    """Fields that it belongs to."""
    relevance: Grade
    """How much of the requirements it covers, 0 to 5."""
    quality: Grade
    """Health of its code, tests and maintenance, 0 to 5."""
    notes: str = ""
    """Further information."""
    components: list[SourceComponent] = Field(default_factory=list)


class ContractDifference(ConfigPart):
    """A capability whose interface differs in this project."""

    capability: str
    src_api: str
    """Interface in the source."""
    tgt_api: str
    """Interface in this project."""
    rule: str
    """How to convert one into the other."""


class LicenseAction(ConfigPart):
    """The obligation from a licence."""

    source_id: str
    license: str
    risk: Literal["none", "low", "medium", "high"]
    action: str
    """How it is fulfilled."""


class SourceInventory(ConfigPart):
    """The complete `docs/sources.yaml`."""

    sources: Annotated[list[SourceEntry], Field(min_length=1)]
    contracts_diff: list[ContractDifference] = Field(default_factory=list)
    licenses: list[LicenseAction] = Field(default_factory=list)


def read_sources(project: Path) -> SourceInventory:
    """Return the inventory of a project.

    Raises:
        ConfigError: the file is invalid, or a licence is not covered; with one sentence per problem.
    """
    layer = read(project / SOURCES)
    if layer.problems:
        raise ConfigError(*layer.problems)
    try:
        inventory = SourceInventory.model_validate(layer.tree)
    except ValidationError as error:
        found = [problem_of(detail, SourceInventory) for detail in error.errors(include_url=False)]
        raise ConfigError(*sentences(found, layer.marks, "the inventory")) from error
    if problems := list(_problems(inventory)):
        raise ConfigError(*(f"{project / SOURCES}: {problem}" for problem in problems))
    return inventory


def render_sources(project: Path, *, check: bool = False) -> list[str]:
    """Write the tables and the tasks of a project; returns the files that changed, or would change.

    Args:
        project: its folder.
        check: whether to only compare and change nothing.

    Raises:
        ConfigError: inventory or specification cannot be used.
    """
    inventory = read_sources(project)
    specification = (project / SPECIFICATION).read_text(encoding="utf-8")
    head, begin, rest = specification.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{project / SPECIFICATION}: has no lines {BEGIN} and {END} for the tables")
    tasks = list(tasks_of(inventory))
    wanted = {
        SPECIFICATION: f"{head}{BEGIN}\n{tables_of(inventory)}{END}{tail}",
        TASKS[0]: "# Tasks\n\n" + _table(list(tasks[0]), [list(task.values()) for task in tasks]),
        TASKS[1]: json.dumps(tasks, indent=2, ensure_ascii=False) + "\n",
    }
    changed = [name for name, text in wanted.items() if not _holds(project / name, text)]
    for name in changed if not check else ():
        write_atomic(project / name, wanted[name])
    return [str(name) for name in changed]


def tables_of(inventory: SourceInventory) -> str:
    """Return the inventory, the mapping of components, the differences and the licences as Markdown."""
    names = [one.id for one in inventory.sources]
    entries = [[name, *_entry(one)] for name, one in zip(names, inventory.sources, strict=True)]
    components = [[entry.id, *_component(one)] for entry in inventory.sources for one in entry.components]
    differences = [
        [one.capability, f"`{one.src_api}`", f"`{one.tgt_api}`", one.rule] for one in inventory.contracts_diff
    ]
    licenses = [[one.source_id, one.license, one.risk, one.action] for one in inventory.licenses]
    parts = (
        ("Sources", _ENTRY, entries),
        ("Components and targets", _COMPONENT, components),
        ("Differences of interfaces", ("capability", "source", "here", "rule"), differences),
        ("Licences", ("source", "licence", "risk", "action"), licenses),
    )
    return "\n".join(f"### {title}\n\n{_table(header, rows)}" for title, header, rows in parts)


_ENTRY = (
    *("id", "type", "name", "url", "licence", "version", "tags"),
    *("relevance (0-5)", "quality (0-5)", "notes"),
)
_COMPONENT = ("source", "path", "purpose", "needs", "issues", "target", "reuse", "days", "risks")


def _entry(one: SourceEntry) -> list[object]:
    tags = ", ".join(one.tags)
    return [
        one.type,
        one.name,
        one.url,
        one.license,
        one.version,
        tags,
        one.relevance,
        one.quality,
        one.notes,
    ]


def _component(one: SourceComponent) -> list[object]:
    needs, issues, risks = ", ".join(one.deps), "; ".join(one.issues), "; ".join(one.mapping.risks)
    days = f"{one.mapping.effort_days:g}"
    target, reuse = f"`{one.mapping.target}`", one.mapping.reuse
    return [
        f"`{one.path}`",
        one.purpose,
        needs or "none",
        issues or "none",
        target,
        reuse,
        days,
        risks or "none",
    ]


def tasks_of(inventory: SourceInventory) -> Iterator[dict[str, Any]]:
    """Yield a task per component: its target, its effort in days, and what its licence requires."""
    actions = {one.source_id: one.action for one in inventory.licenses}
    for entry in inventory.sources:
        for one in entry.components:
            yield {
                "target": one.mapping.target,
                "source": f"{entry.id} {one.path}",
                "reuse": one.mapping.reuse,
                "days": one.mapping.effort_days,
                "risks": "; ".join(one.mapping.risks),
                "licence action": actions.get(entry.id, "none"),
            }


def _problems(inventory: SourceInventory) -> Iterator[str]:
    known = [one.id for one in inventory.sources]
    if len(set(known)) != len(known):
        yield "an id of sources occurs twice"
    if not any(one.components for one in inventory.sources):
        yield "no source has components, so there are no tasks"
    stated = {one.source_id: one.license for one in inventory.licenses}
    for name in stated.keys() - set(known):
        yield f"licenses names {name}, which is not a source"
    for one in inventory.sources:
        if one.license != "N/A" and stated.get(one.id) != one.license:
            yield f"licenses has no entry for {one.id} ({one.license}): say what it asks for"


def _holds(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text(encoding="utf-8") == text


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return (
        "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)
        + "\n"
    )
