"""Runs expectation suites on DataFrames with Great Expectations, and writes its Data Docs.

The project of Great Expectations lies in `great_expectations/`; a run works on a copy under the platform's home. The
import of Great Expectations takes seconds, so functions of this module import it themselves, and `warm_up` does so
beside other work.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import duckdb
import pyarrow
from pyspark.sql import DataFrame, SparkSession

from schemas.errors import TerminalError
from spark.lake.columnar import quoted
from spark.quality.suites import Expectation

if TYPE_CHECKING:
    import pandas
    from great_expectations.data_context.data_context.file_data_context import FileDataContext

log = logging.getLogger("millrace.quality")

KEPT_RUNS = 20
"""The number of runs of a suite whose results and pages are kept. Data Docs list all of them."""

CRITICAL = "critical"
"""The severity of an expectation whose failure fails its suite."""

EXAMPLES = 10
"""The number of values that a failed expectation shows."""


IN_MEMORY = 150_000_000
"""Values, rows times columns, up to which a frame is audited in memory, by pandas: most of them are truth values of a
byte. Spark has a fixed cost of ten seconds and more, and bounds its memory."""


class FailedExpectations(TerminalError):
    """Suites failed. The message names the expectations and shows values that broke them."""


@dataclass(frozen=True)
class Outcome:
    """The result of one suite."""

    suite: str
    success: bool
    """Whether no critical expectation failed."""
    evaluated: int
    """The number of expectations."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """For each failed expectation its type, its arguments (`about`), what was observed, and its severity: `critical`,
    or `warning`, which is reported and blocks nothing."""
    docs: str = ""
    """The path of its page in Data Docs, relative to their root, with a leading slash."""

    def row(self, run_id: str, stream: str, through_batch: int, at: datetime) -> dict[str, Any]:
        """Returns the outcome as columns of `system/quality`. `through_batch` is the newest batch of the ingest whose
        rows were looked at, and `at` (UTC) is when."""
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
        """The failures of critical expectations."""
        return [failure for failure in self.failures if failure["severity"] == CRITICAL]

    def lines(self) -> list[str]:
        """Returns the result in words: a line for the suite, and one for each failed expectation."""
        head = f"suite {self.suite}: {self.evaluated - len(self.failures)} of {self.evaluated} expectations hold"
        return [head, *(f"  {_verdict(failure)} {failure_text(failure)} ({self.docs})" for failure in self.failures)]


def _verdict(failure: dict[str, Any]) -> str:
    return "FAILED" if failure["severity"] == CRITICAL else "WARNING"


def failure_text(failure: dict[str, Any]) -> str:
    """Returns a failed expectation (an item of `Outcome.failures`) on one line."""
    about = ", ".join(f"{name}={value}" for name, value in failure["about"].items())
    observed = ", ".join(f"{name} {value}" for name, value in failure["observed"].items())
    return f"{failure['expectation']}({about}): {observed}"


def warm_up() -> threading.Thread:
    """Starts and returns a thread that imports Great Expectations, beside the start of the JVM. The first run of a
    suite waits for the import."""

    def load() -> None:
        import great_expectations.expectations  # noqa: F401

    thread = threading.Thread(target=load, name="import great_expectations", daemon=True)
    thread.start()
    return thread


class Auditor:
    """Runs the suites of one stream in one run, and writes their pages of Data Docs.

    `project` is the folder of the project of Great Expectations, `home` the folder of its working copy, `docs` the root
    of Data Docs, `now` the time (UTC) of the run, and `spark` begins the session that audits many rows.
    """

    def __init__(
        self,
        project: Path,
        home: Path,
        docs: Path,
        stream: str,
        run_id: str,
        now: datetime,
        spark: Callable[[], SparkSession] | None = None,
    ) -> None:
        self._spark = spark
        self._context = _open(project, home, docs)
        self._sources: dict[str, Any] = {}
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
        """Runs a suite on `frame` and returns the outcome. Without `expectations` the suite is the hand-written one
        that the project has under that name.

        Only if something fails, a second pass looks for values that break the expectations, at most `EXAMPLES` of each.
        """
        source = "lake" if isinstance(frame, DataFrame) else "memory"
        definition = self._definition(suite, source, expectations)
        result = self._run(definition, frame, 0)
        if not result.success:
            result = self._run(definition, frame, EXAMPLES)
        failures = [_failure(checked) for checked in result.results if not checked.success]
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

    def audit_query(
        self, suite: str, connection: duckdb.DuckDBPyConnection, sql: str, expectations: list[Expectation] | None = None
    ) -> Outcome:
        """Runs a suite on the rows of a query in DuckDB, as `audit` does: up to `IN_MEMORY` values in memory, more by
        Spark, from a file."""
        connection.execute(f"create or replace temp table audited as {sql}")
        [(rows, columns)] = connection.execute(
            "select (select count(*) from audited), (select count(*) from (describe audited))"
        ).fetchall()
        if rows * columns <= IN_MEMORY or self._spark is None:
            frame = _in_memory(connection.execute("from audited").to_arrow_table())
            connection.execute("drop table audited")
            return self.audit(suite, frame, expectations)
        with tempfile.TemporaryDirectory(prefix="audited-", dir=self._home) as folder:
            file = Path(folder) / "rows.parquet"
            connection.execute(f"copy audited to {quoted(str(file))} (format parquet)")
            return self.audit(suite, self._spark().read.parquet(str(file)), expectations)

    def build_docs(self) -> None:
        """Writes the pages of this run's suites and the index, and removes results and pages of old runs."""
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
                gx.ExpectationSuite(name=name, expectations=[dict(expectation) for expectation in expectations])
            )
        asset = self._source(source).add_dataframe_asset(name=name)
        data = asset.add_batch_definition_whole_dataframe("rows")
        return context.validation_definitions.add_or_update(gx.ValidationDefinition(name=name, data=data, suite=found))

    def _source(self, name: str) -> Any:
        """The data source for frames of pandas or of Spark. That of Spark begins a session unless there is one."""
        sources = self._context.data_sources
        if name not in self._sources:
            self._sources[name] = (
                sources.add_or_update_pandas(name)
                if name == "memory"
                else sources.add_or_update_spark(name, persist=False)
            )
        return self._sources[name]

    def _run(self, definition: Any, frame: DataFrame | pandas.DataFrame, examples: int) -> Any:
        from great_expectations.core.run_identifier import RunIdentifier

        return definition.run(
            batch_parameters={"dataframe": frame},
            # One job evaluates all expectations on rows; examples cost a job for each expectation.
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
    """Raises `FailedExpectations` with every critical expectation that failed, if there is any."""
    failed = [outcome for outcome in outcomes if not outcome.success]
    if failed:
        lines = [f"{outcome.suite}: {failure_text(failure)}" for outcome in failed for failure in outcome.critical]
        pages = ", ".join(outcome.docs for outcome in failed)
        raise FailedExpectations(
            f"{stream}: {len(lines)} expectations failed:\n  " + "\n  ".join(lines) + f"\nsee Data Docs {pages}"
        )


def _in_memory(rows: pyarrow.Table) -> pandas.DataFrame:
    """The rows with exact values: integers and decimals beside nulls do not become floats."""
    frame: pandas.DataFrame = rows.to_pandas(integer_object_nulls=True)
    return frame


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
    """A failed expectation as an item of `Outcome.failures`."""
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
    """The message of the first exception in a result's `exception_info`, which holds one exception or one for each
    metric; empty if none was raised."""
    if not isinstance(info, dict):
        return ""
    if info.get("raised_exception"):
        return str(info.get("exception_message"))
    return next(filter(None, (_raised(value) for value in info.values() if isinstance(value, dict))), "")


def _prune(validations: Path) -> None:
    """Removes all but the newest runs of each suite: `<validations>/<suite>/<run name>/<time>/…`."""
    for suite in validations.glob("*/"):
        runs = sorted(suite.glob("*/*/"), key=lambda run: run.name, reverse=True)
        for run in runs[KEPT_RUNS:]:
            shutil.rmtree(run, ignore_errors=True)
            if not any(run.parent.iterdir()):
                run.parent.rmdir()
