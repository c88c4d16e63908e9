"""Runs expectation suites on DataFrames with Great Expectations, and keeps its Data Docs.

The project is data in `great_expectations/`; a run works on a copy under the platform's home. Great Expectations takes
seconds to import, so this module imports it inside functions, and `warm_up` does so beside other work.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pyspark.sql import DataFrame

from schemas.errors import TerminalError
from spark.quality.suites import Expectation

if TYPE_CHECKING:
    import pandas
    from great_expectations.data_context.data_context.file_data_context import FileDataContext

log = logging.getLogger("millrace.quality")

KEPT_RUNS = 20
"""Results and pages of a suite that are kept; Data Docs list all that there are."""

CRITICAL = "critical"

EXAMPLES = 10
"""Values that a failed expectation shows."""


class FailedExpectations(TerminalError):
    """Suites failed; the message names the expectations with the values that broke them."""


@dataclass(frozen=True)
class Outcome:
    """The result of one suite."""

    suite: str
    success: bool
    """No critical expectation failed."""
    evaluated: int
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Per failed expectation its type, what it is about, what was observed, and its severity: `critical`, or `warning`,
    which reports and blocks nothing."""
    docs: str = ""
    """Path of its page in Data Docs, relative to their root, with a leading slash."""

    def row(self, run_id: str, stream: str, through_batch: int, at: datetime) -> dict[str, Any]:
        """The columns of `system/quality`; `through_batch` is the newest ingest batch that was looked at."""
        return {
            "run_id": run_id,
            "stream": stream,
            "suite": self.suite,
            "success": self.success,
            "evaluated": self.evaluated,
            "failed": len(self.critical),
            "warnings": len(self.failures) - len(self.critical),
            "failures": json.dumps(self.failures, default=str),
            "docs": self.docs,
            "through_batch": through_batch,
            "recorded_at": at,
        }

    @property
    def critical(self) -> list[dict[str, Any]]:
        return [failure for failure in self.failures if failure["severity"] == CRITICAL]

    def lines(self) -> list[str]:
        """The result in words, a failed expectation a line."""
        head = f"suite {self.suite}: {self.evaluated - len(self.failures)} of {self.evaluated} expectations hold"
        return [head, *(f"  {_verdict(failure)} {failure_text(failure)} ({self.docs})" for failure in self.failures)]


def _verdict(failure: dict[str, Any]) -> str:
    return "FAILED" if failure["severity"] == CRITICAL else "WARNING"


def failure_text(failure: dict[str, Any]) -> str:
    about = ", ".join(f"{name}={value}" for name, value in failure["about"].items())
    observed = ", ".join(f"{name} {value}" for name, value in failure["observed"].items())
    return f"{failure['expectation']}({about}): {observed}"


def warm_up() -> threading.Thread:
    """Imports Great Expectations in a thread, beside the start of the JVM; the first audit waits for it."""

    def load() -> None:
        import great_expectations.expectations  # noqa: F401

    thread = threading.Thread(target=load, name="import great_expectations", daemon=True)
    thread.start()
    return thread


class Auditor:
    """Runs the suites of one stream in one run, into one set of Data Docs.

    `project` is the committed project, `home` the folder of its working copy, `docs` the root of Data Docs.
    """

    def __init__(self, project: Path, home: Path, docs: Path, stream: str, run_id: str, now: datetime) -> None:
        self._context = _open(project, home, docs)
        sources = self._context.data_sources
        self._sources: dict[str, Any] = {
            "lake": sources.add_or_update_spark("lake", persist=False),
            "memory": sources.add_or_update_pandas("memory"),
        }
        self._stream, self._home, self._docs = stream, home, docs
        self._run_name = re.sub(r"[^\w.-]+", "_", run_id)
        self._now = now
        self._resources: list[Any] = []

    def audit(
        self,
        suite: str,
        frame: DataFrame | pandas.DataFrame,
        expectations: list[Expectation] | None = None,
    ) -> Outcome:
        """The outcome of `suite` on `frame`; without `expectations` it is the project's hand-written suite of that
        name. Values that fail are only looked for (`EXAMPLES` of each) when something fails, in a second pass.

        Spark's fixed cost is a few tenths of a second an expectation: hand over small results as pandas frames.
        """
        source = "lake" if isinstance(frame, DataFrame) else "memory"
        definition = self._definition(suite, source, expectations)
        result = self._run(definition, frame, 0)
        if not result.success:
            result = self._run(definition, frame, EXAMPLES)
        failures = [_failure(one) for one in result.results if not one.success]
        outcome = Outcome(
            suite=suite,
            success=all(failure["severity"] != CRITICAL for failure in failures),
            evaluated=len(result.results),
            failures=failures,
            docs=self._page(definition, source),
        )
        for line in outcome.lines():
            log.info("%s", line)
        return outcome

    def build_docs(self) -> None:
        """Builds the pages of this run's suites and the index, and drops the pages of old runs."""
        for folder in (self._home / "validations", self._docs / "validations"):
            _prune(folder)
        self._context.build_data_docs(resource_identifiers=self._resources)

    def _definition(self, suite: str, source: str, expectations: list[Expectation] | None) -> Any:
        import great_expectations as gx

        context, name = self._context, f"{self._stream}.{suite}"
        if expectations is None:
            found = context.suites.get(suite)
        else:
            found = context.suites.add_or_update(
                gx.ExpectationSuite(name=name, expectations=[dict(one) for one in expectations])
            )
        asset = self._sources[source].add_dataframe_asset(name=name)
        data = asset.add_batch_definition_whole_dataframe("rows")
        return context.validation_definitions.add_or_update(gx.ValidationDefinition(name=name, data=data, suite=found))

    def _run(self, definition: Any, frame: DataFrame | pandas.DataFrame, examples: int) -> Any:
        from great_expectations.core.run_identifier import RunIdentifier

        return definition.run(
            batch_parameters={"dataframe": frame},
            # Whether an expectation on rows holds is found for all of them in one job; examples cost one job each.
            result_format={"result_format": "BASIC", "partial_unexpected_count": examples}
            if examples
            else "BOOLEAN_ONLY",
            run_id=RunIdentifier(run_name=self._run_name, run_time=self._now),
        )

    def _page(self, definition: Any, source: str) -> str:
        from great_expectations.core.run_identifier import RunIdentifier
        from great_expectations.data_context.types.resource_identifiers import (
            ExpectationSuiteIdentifier,
            ValidationResultIdentifier,
        )

        suite = ExpectationSuiteIdentifier(name=definition.suite.name)
        result = ValidationResultIdentifier(
            expectation_suite_identifier=suite,
            run_id=RunIdentifier(run_name=self._run_name, run_time=self._now),
            batch_identifier=f"{source}-{definition.name}",
        )
        self._resources += [suite, result]
        [site] = self._context.get_docs_sites_urls(resource_identifier=result, only_if_exists=False)
        page = Path(unquote(urlsplit(str(site["site_url"])).path))
        return f"/{page.relative_to(self._docs.resolve())}"


def require_success(stream: str, outcomes: Iterable[Outcome]) -> None:
    """Raises `FailedExpectations` with every failed expectation, if there is one."""
    failed = [outcome for outcome in outcomes if not outcome.success]
    if failed:
        lines = [f"{outcome.suite}: {failure_text(failure)}" for outcome in failed for failure in outcome.critical]
        pages = ", ".join(outcome.docs for outcome in failed)
        raise FailedExpectations(
            f"{stream}: {len(lines)} expectations failed:\n  " + "\n  ".join(lines) + f"\nsee Data Docs {pages}"
        )


def _open(project: Path, home: Path, docs: Path) -> FileDataContext:
    import great_expectations as gx

    home.mkdir(parents=True, exist_ok=True)
    for generated in ("checkpoints", "validation_definitions"):
        shutil.rmtree(home / generated, ignore_errors=True)
    shutil.copytree(project, home, dirs_exist_ok=True)
    docs.mkdir(parents=True, exist_ok=True)
    (home / "config_variables.yml").write_text(json.dumps({"data_docs": str(docs.resolve())}) + "\n")
    return gx.get_context(mode="file", context_root_dir=str(home.resolve()))


def _failure(result: Any) -> dict[str, Any]:
    """A failed expectation as plain data."""
    kwargs = {key: value for key, value in result.expectation_config.kwargs.items() if key != "batch_id"}
    shown = ("observed_value", "unexpected_count", "element_count", "partial_unexpected_list")
    observed = {key: result.result[key] for key in shown if key in result.result}
    raised = _raised(result.exception_info)
    severity = result.expectation_config.severity
    return {
        "expectation": result.expectation_config.type,
        "about": kwargs,
        "observed": observed | ({"raised": raised} if raised else {}),
        "severity": str(getattr(severity, "value", severity)),
    }


def _raised(info: Any) -> str:
    """The first exception in a result's `exception_info`, which holds one or one a metric."""
    if not isinstance(info, dict):
        return ""
    if info.get("raised_exception"):
        return str(info.get("exception_message"))
    return next(filter(None, (_raised(value) for value in info.values() if isinstance(value, dict))), "")


def _prune(validations: Path) -> None:
    """Keeps the newest runs of each suite: `<validations>/<suite>/<run name>/<time>/…`."""
    for suite in validations.glob("*/"):
        runs = sorted(suite.glob("*/*/"), key=lambda run: run.name, reverse=True)
        for run in runs[KEPT_RUNS:]:
            shutil.rmtree(run, ignore_errors=True)
            if not any(run.parent.iterdir()):
                run.parent.rmdir()
