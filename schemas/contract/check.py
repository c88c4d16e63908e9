"""Everything that `millrace check` verifies about contracts, with no server and no JVM. All problems are reported."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path

from avro.errors import SchemaParseException

from schemas.contract import check_names, check_stateful, check_types, examples, references
from schemas.contract.catalog import documents, load_with_lines
from schemas.contract.compatibility import incompatibilities, other_columns
from schemas.contract.document import Document, Step
from schemas.contract.field_kinds import NUMERIC, kind
from schemas.contract.folders import folders
from schemas.contract.model import RESERVED, Contract
from schemas.contract.operands import unknown
from schemas.contract.predicates import Alerts, PredicateError, Rules
from schemas.contract.problem import ContractError, Problem
from schemas.contract.verdict import Judge


def check(root: Path, streams: Collection[str] | None = None) -> list[Problem]:
    """Returns every problem of the contracts under `root`, or of `streams` alone if they are given, sorted by file and
    line. An empty list means that all is right.

    Raises nothing for a broken contract: what is wrong is in the answer.
    """
    found = folders(root)
    problems: set[Problem] = set()
    for stream in sorted(set(streams or ()) - {folder.name for folder in found}):
        problems.add(
            Problem(root, 1, "", f"has no stream {stream!r}; there are: {', '.join(f.name for f in found) or 'none'}")
        )
    if not found:
        problems.add(Problem(root, 1, "", "holds no contract (<stream>/stream.yaml)"))
    contracts: dict[str, tuple[Contract, Document]] = {}
    for folder in found:
        try:
            contracts[folder.name] = load_with_lines(folder)
        except ContractError as error:
            if streams is None or folder.name in streams:
                problems.update(error.problems)
    for stream, (contract, document) in contracts.items():
        if streams is None or stream in streams:
            others = [other for name, (other, _) in contracts.items() if name != stream]
            problems.update(_contract(contract, document, others))
    return sorted(problems)


def _contract(contract: Contract, document: Document, others: list[Contract]) -> Iterator[Problem]:
    yield from _names(contract)
    yield from check_names.identity(contract, document)
    yield from _dead_letters(contract, document)
    yield from _quality(contract, document)
    yield from check_names.results(contract, document, others)
    for index, aggregate in enumerate(contract.aggregates):
        yield from check_names.aggregate(contract, document, aggregate, ("aggregates", index))
    yield from check_stateful.problems(contract, document, others)
    wrong_types = [problem for version in documents(contract.folder) for problem in check_types.problems(version)]
    yield from wrong_types
    try:
        yield from _compatibility(contract)
    except SchemaParseException:
        if not wrong_types:  # which are why
            raise
    wrong_rules = list(_rules(contract, document))
    yield from wrong_rules
    wrong_references = list(_references(contract, document))
    yield from wrong_references
    if not wrong_references:
        yield from _alerts(contract, document)
    if not wrong_rules:
        yield from _examples(contract)


def _names(contract: Contract) -> Iterator[Problem]:
    """Problems of the field names: bronze and the served views have columns of their own, and bronze has the fields of
    all versions."""
    spelled: dict[str, str] = {}  # in the first version that has it
    for avsc, version in zip(documents(contract.folder), contract.versions, strict=True):
        for index, field in enumerate(version["fields"]):
            loc, name = ("fields", index, "name"), field["name"]
            if name.lower() in RESERVED:
                yield avsc.problem(loc, f"{name!r} is reserved: bronze or the served views have a column of that name")
            if name.lower() == "event_time" and contract.event_time != name:
                yield avsc.problem(
                    loc, f"{name!r} may only be the name of the event time, which is {contract.event_time!r}"
                )
            before = spelled.setdefault(name.lower(), name)
            if before != name and before not in (other["name"] for other in version["fields"]):
                yield avsc.problem(
                    loc, f"{name!r} is {before!r} in another version, and Delta does not tell such columns apart"
                )


def _dead_letters(contract: Contract, document: Document) -> Iterator[Problem]:
    for name, policy in contract.dead_letters.policy.items():
        loc = ("dead_letters", "policy", name)
        if policy.cap < policy.base:
            yield document.problem((*loc, "cap"), "is shorter than base")
        waits = sum((policy.delay(attempt) for attempt in range(policy.attempts)), timedelta())
        if waits > contract.topic.retention:
            yield document.problem(
                loc,
                f"its attempts take {waits}, but topic.retention forgets it after {contract.topic.retention}",
            )


def _quality(contract: Contract, document: Document) -> Iterator[Problem]:
    quality = contract.quality
    yield from _quality_ranges(contract, document)
    yield from _quality_values(contract, document)
    for name in quality.references:
        if name not in {reference.name for reference in contract.references}:
            yield document.problem(("quality", "references", name), f"there is no reference {name!r}")
    judged = {*quality.ranges, *quality.values, *(rule.name for rule in contract.rules)}
    for name in quality.severity:
        if name not in judged:
            yield document.problem(
                ("quality", "severity", name), f"{name!r} has no range and no values, and is no rule"
            )
    for name, share in quality.mostly.items():
        loc = ("quality", "mostly", name)
        if name not in quality.ranges:
            yield document.problem(loc, f"{name!r} has no range that most of it could satisfy")
        if not 0 < share <= 1:
            yield document.problem(loc, f"must be a share above 0 and at most 1, not {share}")


def _quality_ranges(contract: Contract, document: Document) -> Iterator[Problem]:
    for name, (least, greatest) in contract.quality.ranges.items():
        loc = ("quality", "ranges", name)
        if name not in contract.fields:
            yield document.problem(loc, unknown(contract, name))
        elif kind(contract.fields[name]) not in NUMERIC:
            yield document.problem(
                loc, f"a range needs a number, but field {name!r} is of kind {kind(contract.fields[name])}"
            )
        if least is not None and greatest is not None and least > greatest:
            yield document.problem(loc, f"the least value {least} is above the greatest {greatest}")


def _quality_values(contract: Contract, document: Document) -> Iterator[Problem]:
    for name in contract.quality.values:
        loc = ("quality", "values", name)
        if name not in contract.fields:
            yield document.problem(loc, unknown(contract, name))
        elif kind(contract.fields[name]) != "string":
            yield document.problem(
                loc, f"a list of values needs a string, but {name!r} is of kind {kind(contract.fields[name])}"
            )


def _rules(contract: Contract, document: Document) -> Iterator[Problem]:
    names: set[str] = set()
    for index, rule in enumerate(contract.rules):
        if rule.name in names:
            yield document.problem(("rules", index, "name"), f"rule {rule.name!r} is defined twice")
        names.add(rule.name)
        try:
            Rules(contract, [rule])
        except PredicateError as error:
            yield document.problem(("rules", index, "predicate"), str(error))


def _references(contract: Contract, document: Document) -> Iterator[Problem]:
    names: set[str] = set()
    known = {name.lower() for name in contract.fields}
    for index, reference in enumerate(contract.references):
        loc: tuple[Step, ...] = ("references", index)
        if reference.name in names:
            yield document.problem((*loc, "name"), f"reference {reference.name!r} is defined twice")
        if reference.name in RESERVED | {"event_time"}:
            yield document.problem((*loc, "name"), f"{reference.name!r} is reserved: bronze has a column of that name")
        if reference.name in known:
            yield document.problem((*loc, "name"), f"{reference.name!r} is also a field: a predicate could mean either")
        names.add(reference.name)
        wrong = [
            document.problem((*loc, "key", position), fault)
            for position, name in enumerate(reference.key)
            if (fault := _lookup_fault(contract, name))
        ]
        yield from wrong
        if not wrong:
            try:
                references.table(contract, reference)
            except ContractError as error:
                yield from error.problems


def _lookup_fault(contract: Contract, name: str) -> str | None:
    """Why the field `name` cannot be the key of a reference; None if it can."""
    if name not in contract.fields:
        return unknown(contract, name)
    what = kind(contract.fields[name])
    allowed = check_names.IDENTITY - {"decimal"}
    if what not in allowed:
        return f"a key needs a field of kind {' or '.join(sorted(allowed))}; {name!r} is of kind {what}"
    return None


def _alerts(contract: Contract, document: Document) -> Iterator[Problem]:
    names: set[str] = set()
    known = {reference.name for reference in contract.references}
    for index, alert in enumerate(contract.alerts):
        loc: tuple[Step, ...] = ("alerts", index)
        if alert.name in names:
            yield document.problem((*loc, "name"), f"alert {alert.name!r} is defined twice")
        names.add(alert.name)
        missing = [position for position, name in enumerate(alert.references) if name not in known]
        for position in missing:
            name = alert.references[position]
            yield document.problem(
                (*loc, "references", position),
                f"there is no reference {name!r}; there are: {', '.join(sorted(known)) or 'none'}",
            )
        if not missing:
            try:
                Alerts(contract, [alert])
            except PredicateError as error:
                yield document.problem((*loc, "predicate"), str(error))


def _compatibility(contract: Contract) -> Iterator[Problem]:
    files = documents(contract.folder)
    found = list(incompatibilities(contract.versions, contract.compatibility))
    told = {(version, field) for version, field, _ in found}
    found += [change for change in other_columns(contract.versions) if change[:2] not in told]
    for version, field, message in found:
        names = [entry["name"] for entry in contract.versions[version]["fields"]]
        loc: tuple[Step, ...] = ("fields", names.index(field)) if field in names else ("fields",)
        yield Problem(files[version].path, files[version].line(loc), field or "", message)


def _examples(contract: Contract) -> Iterator[Problem]:
    judge = Judge(contract)
    for sort, read in (("good", examples.good), ("bad", examples.bad)):
        try:
            found = read(contract)
        except ContractError as error:
            yield from error.problems
            continue
        if not found:
            yield Problem(contract.folder / "examples" / sort, 1, "", f"needs at least one {sort} example (*.json)")
        for example in found:
            verdict = judge.verdict(example.value)
            if (verdict.error_class, verdict.rule) != (example.error_class, example.rule):
                expected = _said(example.error_class, example.rule)
                got = _said(verdict.error_class, verdict.rule) + (f" ({verdict.reason})" if verdict.reason else "")
                yield Problem(example.file, 1, "", f"should be {expected}, but is {got}")


def _said(error_class: str | None, rule: str | None) -> str:
    return "accepted" if error_class is None else f"turned away as {error_class}" + (f" by {rule}" if rule else "")
