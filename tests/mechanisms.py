"""Takes each promise's mechanism away and watches its test fail: `make mechanisms`, or
`python -m tests.mechanisms P7 "small files are merged"` for some, by promise or by name.

A test that passes with and without the mechanism it stands for proves nothing. Each entry of `MECHANISMS` removes a few
words from one file, in a copy of the checkout, and runs the tests that must then fail there. Exit code 1 if any passed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

FAILED = 1
"""What pytest returns when tests failed, or what they stand on; anything else than that and 0 is other trouble."""


@dataclass(frozen=True)
class Mechanism:
    """`text`, which stands once in `file`, is what keeps `promise` (a key of `PROMISES`). With `instead` in its
    place each of `tests` fails."""

    promise: str
    name: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Promise:
    """What the platform promises, in a sentence (`title`) and in full (`text`); `missing` is what of it nothing keeps
    yet."""

    title: str
    text: str
    missing: str = ""


PROMISES = {
    "P1": Promise(
        "nothing is lost",
        "Every record that Kafka accepted on a stream's topics is exactly one row of bronze: an event or a dead "
        "letter. The conservation audit compares the offsets on the broker with the coordinates in the tables, per "
        "partition, every hour; a residual fails the run and withholds the stream's publication.",
    ),
    "P2": Promise(
        "one truth, two speeds",
        "The speed layer and the batch layer run the same definition of an aggregate. Numbers that are served before "
        "`final_through` equal an independent recomputation over the raw events, deduplicated by event id.",
    ),
    "P3": Promise(
        "differences are explained",
        "Each measure of a window and key whose speed value differs from the exact value gets a row of the ledger with "
        "its cause. A difference without a cause is `unexplained`, and withholds the publication.",
    ),
    "P4": Promise(
        "late data is never dropped",
        "An event that arrives after its hour was published makes that hour dirty, and the next batch run recomputes "
        "the dirty hours alone.",
    ),
    "P5": Promise(
        "bad numbers are never published",
        "Batch results are staged, audited by Great Expectations, and only then published. A failed audit leaves the "
        "served view as it was, and marks the rows that it serves in their place as `withheld`.",
    ),
    "P6": Promise(
        "a crash at any instant costs seconds, not data",
        "After a kill -9 of driver, broker, registry, scheduler, triggerer or worker nothing is lost, nothing is "
        "doubled, and the platform makes progress again by itself. `docs/reliability.md` has the measured times.",
    ),
    "P7": Promise(
        "no two drivers",
        "A lease with an epoch, a row of PostgreSQL, fences a stale driver: even one that was paused past its lease "
        "and resumed cannot commit.",
    ),
    "P8": Promise(
        "dead letters come back",
        "Dead letters are replayed on a schedule with their bytes and identity intact, with bounded attempts and "
        "exponential backoff, by a policy per error class, inside Kafka transactions; and the platform verifies that "
        "each record landed.",
    ),
    "P9": Promise(
        "a new stream is files, not code",
        "A folder with a contract makes topics, tables, windows, checks, replay, metrics and the work of the DAGs.",
    ),
    "P10": Promise(
        "closed by default",
        "The broker accepts clients by TLS and SCRAM alone, and each component has a principal of its own.",
        missing="Kafka has no authorizer, so every principal may do everything; there are no access-control lists and "
        "no audit log. `SECURITY.md` says what that means.",
    ),
    "P11": Promise(
        "a stream's failure is its own",
        "Whatever goes wrong in one stream halts that stream alone, with reason and way out; the others never pause. "
        "The stream is tried again by itself, with growing pauses, and goes on once the cause is mended. A contract "
        "that is broken on disk keeps its own stream from starting, and no command, query or view from working: these "
        "go by the contracts that were deployed last.",
        "A micro-batch that kills the JVM ends the driver of all streams; the proof for every cell of the fault "
        "matrix.",
    ),
    "P12": Promise(
        "numbers prove themselves",
        "A chain of digests binds offsets, bronze, published windows and ledger; what was changed later is found and "
        "named by a script that shares no code with the platform.",
    ),
}
"""The promises by number, which stand in comments and decision records too. `docs/promises.md` is made from them."""


MECHANISMS = (
    Mechanism(
        "P1", "a batch's append happens once", "spark/speed/delta_append.py",
        "if written is not None and written >= version:", "if False:",
        ("tests/integration/lake/test_ingest_batch.py::test_a_batch_that_runs_again_changes_nothing",
         "tests/integration/test_faults.py::test_nothing_is_lost_or_doubled[driver-between]"),
    ),
    Mechanism(
        "P1", "a batch is told from those that its files were merged with", "spark/speed/delta_append.py",
        'if all(file["min.batch"] == file["max.batch"] == number for file in mine):', "if True:",
        ("tests/integration/lake/test_ingest_batch.py"
         "::test_a_batch_that_runs_again_after_its_files_were_merged_with_others_is_completed_once",),
    ),
    Mechanism(
        "P1", "a batch's dead letters are sent once", "spark/speed/dead_letters.py",
        "            if batch_id < self._next:\n                return 0\n", "",
        ("tests/integration/test_ingest.py::test_crashes_before_each_commit_neither_lose_nor_double_anything",),
    ),
    Mechanism(
        "P1", "every offset without a row is accounted for", "spark/conservation/accounting.py",
        "[Range(start, mine.first - 1), *mine.gaps, Range(mine.last + 1, end - 1)]", "[]",
        ("tests/integration/test_audit.py::test_rows_deleted_from_bronze_are_the_residual",
         "tests/integration/test_audit.py::test_transactions_leave_gaps_that_are_proved"),
    ),
    Mechanism(
        "P1", "a gap is proved by reading it", "spark/conservation/broker_gaps.py",
        '[Finding(*range_, "missing") for range_ in ranges(notes)]', "[]",
        ("tests/integration/test_audit.py::test_a_commit_that_never_arrived_is_the_residual",),
    ),
    Mechanism(
        "P1", "an earlier proof stands while rows were only appended", "spark/conservation/audit.py",
        " and bronze.only_grew_since(base.version)", "",
        ("tests/integration/test_audit.py::test_doubled_rows_are_found_also_where_the_count_fits",),
    ),
    Mechanism(
        "P1", "an earlier proof stands while its rows are as many", "spark/conservation/audit.py",
        "bronze.all_rows() == base.rows + bronze.rows(base.through_batch)", "True",
        ("tests/integration/test_audit.py::test_doubled_rows_are_found_also_where_the_count_fits",),
    ),
    Mechanism(
        "P1", "a topic made anew under its name is not read from at a start", "spark/speed/ingest_query.py",
        "        self._topics.begin()\n", "",
        ("tests/integration/test_restart.py::test_a_topic_that_was_made_anew_while_the_stream_stood_halts_it",),
    ),
    Mechanism(
        "P1", "nothing of a topic made anew gets into bronze", "spark/speed/ingest.py",
        "        self.may_store()\n", "",
        ("tests/integration/test_restart.py::test_a_topic_that_is_made_anew_after_the_look_at_it_gives_bronze_nothing",),
    ),
    Mechanism(
        "P1", "a topic made anew is found without a batch", "spark/speed/ingest_query.py",
        "            self.standstill.failed(halt)\n            if not self.finish():",
        "            if not self.finish():",
        ("tests/integration/test_restart.py"
         "::test_a_topic_that_is_made_anew_under_a_running_stream_halts_it_without_a_batch",),
    ),
    Mechanism(
        "P1", "an audit is about the topics that bronze was read from", "spark/conservation/source_topics.py",
        "topic_identity.changed(noted, now), gen", "[], gen",
        ("tests/integration/test_audit.py::test_what_the_old_topic_owes_is_the_residual",),
    ),
    Mechanism(
        "P1", "a proof is about offsets of one topic", "spark/conservation/audit_log.py",
        "filter(same, audit.partitions)", "audit.partitions",
        ("tests/integration/test_audit.py::test_a_proof_of_the_old_topic_explains_nothing_of_the_new_one",),
    ),
    Mechanism(
        "P1", "what Kafka dropped unread halts the stream", "spark/speed/ingest_query.py",
        "            retained.require_retained(self.contract, settings, opening.generation)\n", "            pass\n",
        ("tests/integration/test_restart.py"
         "::test_records_that_kafka_dropped_unread_halt_the_stream_and_the_audit_lists_what_is_accepted",),
    ),
    Mechanism(
        "P1", "an accepted loss is listed", "spark/conservation/audit.py",
        "accounting.split(mine, topics.accepted(topic, partition))", "accounting.split(mine, [])",
        ("tests/integration/test_restart.py"
         "::test_records_that_kafka_dropped_unread_halt_the_stream_and_the_audit_lists_what_is_accepted",),
    ),
    Mechanism(
        "P1", "a registry that was rebuilt is asked for all versions", "spark/speed/writer_schemas.py",
        "sorted(self._client.get_versions(self._subject))",
        "[v for v in self._client.get_versions(self._subject) if v > (self._newest or (0,))[0]]",
        ("tests/unit/spark/speed/test_writer_schemas.py"
         "::test_a_registry_that_was_rebuilt_with_other_ids_is_found_at_the_next_question[later0-names0]",),
    ),
    Mechanism(
        "P1", "records behind an open transaction are seen", "spark/speed/open_transactions.py",
        'principal="stream", uncommitted=True)', 'principal="stream")',
        ("tests/integration/test_restart.py::test_records_behind_an_open_transaction_are_reported_until_it_ends",),
    ),
    Mechanism(
        "P1", "an unknown arrival judges nothing", "spark/transforms/validate.py",
        'F.when(F.unix_millis("kafka_timestamp") >= LEAST_ARRIVAL, F.col("kafka_timestamp"))',
        'F.col("kafka_timestamp")',
        ("tests/unit/spark/transforms/test_decode.py::test_an_arrival_that_is_not_known_judges_nothing",),
    ),
    Mechanism(
        "P1", "how timestamps are treated does not depend on the brokers", "infra/operations/provisioning.py",
        '        "message.timestamp.after.max.ms": UNBOUNDED,\n', "",
        ("tests/integration/test_provisioning.py"
         "::test_timestamps_are_treated_alike_whatever_the_brokers_do_by_themselves",),
    ),
    Mechanism(
        "P1", "a topic of somebody else's is never altered", "infra/operations/provisioning.py",
        "managed=topic.managed or name != contract.main_topic", "managed=True",
        ("tests/integration/test_provisioning.py::test_a_topic_of_somebody_else_is_never_altered",),
    ),
    Mechanism(
        "P1", "a subject of somebody else's is never altered", "infra/operations/provisioning.py",
        "        if not contract.topic.managed:\n", "        if False:\n",
        ("tests/integration/test_provisioning.py::test_a_subject_of_somebody_else_is_never_altered",),
    ),
    Mechanism(
        "P1", "a repair sends nothing that is on its way", "producers/repair.py",
        "letter.identity not in on_topic", "True",
        ("tests/integration/test_audit.py::test_repair_sends_exactly_what_is_missing_and_as_it_was",),
    ),
    Mechanism(
        "P1", "a residual withholds publication", "dags/reconcile.py",
        "        withheld=residual,\n", "",
        ("tests/unit/dags/test_reports.py::test_a_stream_with_a_residual_is_withheld_and_the_others_go_on",),
    ),
    Mechanism(
        "P5", "what an audit keeps from being published is marked too", "dags/reconcile.py",
        "        refusals.withhold(\n            config.lake_uri, contract_in_service(config, stream), run_id, "
        "own[-1].through_batch, str(error)\n        )\n", "",
        ("tests/unit/dags/test_reports.py::test_a_stream_with_a_residual_is_withheld_and_the_others_go_on",),
    ),
    Mechanism(
        "P1", "an id that is not in the cache is asked for", "spark/speed/ingest.py",
        "            if UNREGISTERED not in str(error):\n", "            if True:\n",
        ("tests/integration/test_ingest.py"
         "::test_a_version_registered_while_the_stream_runs_is_read_without_a_restart",),
    ),
    Mechanism(
        "P1", "a version waits for a driver that reads it", "dags/provision.py",
        "        require_deployed(config, contract)\n", "",
        ("tests/unit/infra/driver/test_process.py::test_a_version_is_not_provisioned_while_a_driver_runs_that_does_not_read_it",),
    ),
    Mechanism(
        "P1", "producers register nothing", "producers/codec.py",
        "int(client.lookup_schema(contract.subject, schema).schema_id)",
        "int(client.register_schema(contract.subject, schema))",
        ("tests/integration/test_produce.py::test_a_producer_writes_in_the_registered_schema_and_registers_none",),
    ),
    Mechanism(
        "P1", "nobody decides about an id while the registry is away", "spark/speed/writer_schemas.py",
        "return Known(dict(self._schemas), complete=False)", "return Known(dict(self._schemas))",
        ("tests/integration/test_ingest.py"
         "::test_while_the_registry_is_away_known_schemas_go_on_and_a_batch_of_another_one_waits",),
    ),
    Mechanism(
        "P1", "state has a batch that Delta has already", "spark/speed/stateful_query.py",
        "    if written is not None and written >= batch_id:\n", "    if False:\n",
        ("tests/integration/lake/test_derived.py::test_killed_anywhere_a_query_loses_and_doubles_nothing",),
    ),
    Mechanism(
        "P2",
        "an event counts once in the batch layer",
        "spark/batch/deduplication.py",
        '"$nth" = min("$nth") over (partition by {identity} {near}) as "$distinct_event"',
        'true as "$distinct_event"',
        (
            "tests/integration/lake/test_repeats.py::test_copies_as_far_apart_as_the_contract_says_are_two_events",
        ),
    ),
    Mechanism(
        "P2",
        "a float is added by the digits that it is written with",
        "spark/definitions/measures.py",
        'try_cast(cast({value} as varchar) as {decimal})',
        'try_cast({value} as {decimal})',
        (
            "tests/unit/spark/batch/test_windows.py::test_a_float_is_added_by_the_digits_that_it_is_written_with",
        ),
    ),
    Mechanism(
        "P2",
        "records of one id that are far apart are two events",
        "spark/batch/deduplication.py",
        'near = f\'order by "$micros" range between {reach} preceding and {reach} following\'',
        'pass',
        (
            "tests/integration/lake/test_repeats.py::test_copies_as_far_apart_as_the_contract_says_are_two_events",
        ),
    ),
    Mechanism(
        "P2", "an event counts once in a micro-batch", "spark/transforms/aggregates.py",
        '.where("`$nth` = 1")', "",
        ("tests/integration/lake/test_ingest_batch.py"
         "::test_every_record_is_one_row_repeats_count_once_and_rejects_become_letters",),
    ),
    Mechanism(
        "P2", "repeats in a micro-batch are looked for", "spark/speed/ingest.py",
        "if not len(repeated):", "if True:",
        ("tests/integration/lake/test_ingest_batch.py"
         "::test_every_record_is_one_row_repeats_count_once_and_rejects_become_letters",
         "tests/integration/lake/test_ingest_batch.py::test_a_batch_of_many_repeats_counts_them_once"),
    ),
    Mechanism(
        "P2", "all batches run the same code", "spark/speed/delta_append.py",
        'F.get(F.array(F.lit(number).cast("bigint")), F.pmod(F.spark_partition_id(), F.lit(1)))', "F.lit(number)",
        ("tests/integration/lake/test_ingest_batch.py"
         "::test_the_batches_run_the_same_code_and_spark_compiles_all_of_it",),
    ),
    Mechanism(
        "P2", "no process is started for a file", "spark/session.py",
        '{"spark.driver.extraClassPath": spark_class_path(), **_LOCAL_FILES}',
        '{"spark.driver.extraClassPath": spark_class_path()}',
        ("tests/integration/lake/test_ingest_batch.py::test_no_process_is_started_for_a_file",),
    ),
    Mechanism(
        "P2", "files that could not be merged with each other do not count", "spark/speed/small_files.py",
        "if below // 2 <= size_ < size // 2", "if below <= size_ < size",
        ("tests/unit/spark/speed/test_small_files.py::test_files_of_any_size_stay_few_and_the_rest_of_the_work_gets_its_turn",),
    ),
    Mechanism(
        "P2", "a busy key forgets its old events", "spark/transforms/velocity.py",
        "if event.at > watermark - 2 * self._width}", "}",
        ("tests/unit/spark/transforms/test_velocity.py"
         "::test_the_state_of_a_key_is_bounded_while_it_is_busy_and_gone_when_it_has_been_silent",),
    ),
    Mechanism(
        "P2", "a silent key is forgotten", "spark/transforms/velocity.py",
        "self._handle.registerTimer(self._forgotten_at(events[-1]))", "pass",
        ("tests/unit/spark/transforms/test_velocity.py"
         "::test_the_state_of_a_key_is_bounded_while_it_is_busy_and_gone_when_it_has_been_silent",),
    ),
    Mechanism(
        "P2", "no two keys share the id of an alert", "spark/transforms/velocity.py",
        "*map(_escaped, velocity.key)", '*(F.col(name).cast("string") for name in one.key)',
        ("tests/integration/lake/test_derived.py::test_no_two_keys_share_the_id_of_an_alert",),
    ),
    Mechanism(
        "P2", "a stateful batch writes the changes of its state only", "spark/session.py",
        '        "spark.sql.streaming.stateStore.rocksdb.changelogCheckpointing.enabled": "true",\n', "",
        ("tests/integration/lake/test_derived.py"
         "::test_state_does_not_grow_with_time_and_a_batch_writes_its_changes_only[stays]",),
    ),
    Mechanism(
        "P2", "what a field means does not change", "schemas/contract/compatibility.py",
        "_other_meanings(versions[newer], versions[older]) if directions else ()", "()",
        ("tests/unit/schemas/contract/test_check.py::test_compatibility_of_versions",),
    ),
    Mechanism(
        "P2", "alerts of a partition that is added are copied", "spark/speed/alert_log.py",
        "if partitions != self._partitions:", "if not self._partitions:",
        ("tests/integration/test_lane.py::test_a_partition_that_is_added_while_the_log_runs_is_copied_too",),
    ),
    Mechanism(
        "P2", "sums of decimals keep their digits", "spark/definitions/measures.py",
        "case DecimalType() as type_ if not _fits_nine(type_):", "case DecimalType() as type_ if False:",
        ("tests/integration/lake/test_numbers.py"
         "::test_sums_extremes_averages_and_quantiles_are_exact_in_every_layer",),
    ),
    Mechanism(
        "P2", "a sum that no type holds is refused", "schemas/contract/operands.py",
        'if use in ("sum", "avg") and digits > SUMMED_DIGITS:', "if False:",
        ("tests/integration/lake/test_numbers.py::test_check_refuses_what_no_type_holds_exactly",),
    ),
    Mechanism(
        "P3",
        "different decimals are a difference, the same double or not",
        "spark/batch/ledger.py",
        'f"then {served.text} is not distinct from {exact.text} else {same_number} end"',
        'f"then {same_number} else {same_number} end"',
        (
            "tests/integration/lake/test_numbers.py::test_sums_extremes_averages_and_quantiles_are_exact_in_every_layer",
        ),
    ),
    Mechanism(
        "P2", "bytes that do not fit a decimal are no number", "spark/transforms/decode.py",
        'json.dumps(widened(avro_types.without_unknown_logical_types(json.loads(avro_json)), _MOST_DIGITS))',
        "json.dumps(avro_types.without_unknown_logical_types(json.loads(avro_json)))",
        ("tests/integration/lake/test_types.py::test_bytes_that_do_not_fit_a_decimal_are_dead_letters[12-2]",),
    ),
    Mechanism(
        "P2", "a time of the day keeps its microseconds", "spark/transforms/decode.py",
        "avro_types.without_unknown_logical_types(json.loads(avro_json))", "json.loads(avro_json)",
        ("tests/integration/lake/test_types.py::test_every_type_that_check_accepts_goes_the_whole_way",),
    ),
    Mechanism(
        "P2", "NaN is missing from the ingest on", "spark/transforms/decode.py",
        "found = _without_nan(type_, value)", "found = value",
        ("tests/integration/lake/test_types.py::test_nan_is_missing_and_an_infinity_is_a_value_in_every_layer",),
    ),
    Mechanism(
        "P2", "a float that is too large for a sum makes it infinite", "spark/definitions/measures.py",
        'if measure.kind not in ("sum", "avg") or not _is_float(measure, contract):', "if True:",
        ("tests/integration/lake/test_types.py::test_nan_is_missing_and_an_infinity_is_a_value_in_every_layer",),
    ),
    Mechanism(
        "P3",
        "what was before all watermarks is late",
        "spark/batch/stateful_ledger.py",
        'or "$micros" <= 0 as "$behind"',
        'as "$behind"',
        (
            "tests/integration/lake/test_types.py::test_event_times_of_the_years_1_to_9999",
        ),
    ),
    Mechanism(
        "P9", "a type is used again by its name", "schemas/contract/model.py",
        'for field in spelled_out(self.reader)["fields"]}', 'for field in self.reader["fields"]}',
        ("tests/integration/lake/test_types.py"
         "::test_a_type_that_is_used_again_by_its_name_is_read_and_stored_in_every_version",),
    ),
    Mechanism(
        "P9", "a field keeps the type of its column", "schemas/contract/check.py",
        "found += [change for change in other_columns(contract.versions) if change[:2] not in told]", "found += []",
        ("tests/unit/schemas/contract/test_versions.py::test_a_field_whose_column_would_change_is_refused",),
    ),
    Mechanism(
        "P2", "a table of before it had a column is read", "spark/serving/duck.py",
        "            create(contract, relations.completed)\n", "            raise\n",
        ("tests/unit/spark/serving/test_duck.py::test_a_column_that_a_table_did_not_have_yet_is_null",),
    ),
    Mechanism(
        "P5", "a table's column of another type is told", "spark/lake/tables.py",
        "_require_types(table, found.schema().fields)", "pass",
        ("tests/unit/spark/lake/test_tables.py::test_a_column_of_another_type_is_told",),
    ),
    Mechanism(
        "P3",
        "a difference is explained by calculation alone",
        "spark/batch/ledger.py",
        "case when not coalesce({_proved(contract, aggregate)}, false) then 'unexplained'",
        "case when false then 'unexplained'",
        (
            "tests/integration/lake/test_reconcile.py::test_a_tampered_speed_layer_is_unexplained_and_publishes_nothing",
        ),
    ),
    Mechanism(
        "P3",
        "what a dead run published is taken back before it is compared",
        "spark/batch/stateful_store.py",
        '        if good is not telling[0]:\n',
        '        if False:\n',
        (
            "tests/integration/lake/test_derived.py::test_lost_rows_are_unexplained_and_publish_nothing_and_a_dead_run_is_undone",
        ),
    ),
    Mechanism(
        "P3", "velocity that the watermark left out is late", "spark/batch/stateful_ledger.py",
        "    found = _passed(found, rows, [], source.allowed_lateness)\n", "",
        ("tests/integration/lake/test_derived.py"
         "::test_who_tells_at_once_is_late_by_the_order_of_the_key_or_by_the_watermark",),
    ),
    Mechanism(
        "P3",
        "what was done is compared",
        "spark/batch/stateful_ledger.py",
        ', "done": "sum(done)"}',
        '}',
        (
            "tests/integration/lake/test_derived.py::test_who_tells_at_once_is_late_by_the_order_of_the_key_or_by_the_watermark",
            "tests/integration/lake/test_derived.py::test_results_that_are_refused_keep_no_other_from_its_turn",
        ),
    ),
    Mechanism(
        "P3", "what sessions measure is compared", "spark/batch/stateful_ledger.py",
        '[*measured, "events"]', '["events"]',
        ("tests/integration/lake/test_derived.py::test_results_that_are_refused_keep_no_other_from_its_turn",),
    ),
    Mechanism(
        "P3",
        "what a state took again is a duplicate",
        "spark/batch/stateful_ledger.py",
        'when "$repeats" > 0 then \'duplicate\' ',
        '',
        (
            "tests/integration/lake/test_derived.py::test_what_came_again_is_a_duplicate_and_letters_that_came_too_late_are_replayed",
        ),
    ),
    Mechanism(
        "P3",
        "letters that came too late for a state are replayed",
        "spark/batch/stateful_ledger.py",
        'case when "$late_replayed" > 0 then \'replayed\'',
        "case when false then 'replayed'",
        (
            "tests/integration/lake/test_derived.py::test_what_came_again_is_a_duplicate_and_letters_that_came_too_late_are_replayed",
        ),
    ),
    Mechanism(
        "P3",
        "what a state took from beyond the cut is known",
        "spark/batch/stateful_planner.py",
        '.accepted(columns)\n',
        '.accepted(columns, self.through[source.stream])\n',
        (
            "tests/integration/lake/test_derived.py::test_what_the_query_took_from_beyond_the_cut_is_late",
        ),
    ),
    Mechanism(
        "P5", "a refused result keeps no other from its turn", "spark/batch/reconciliation.py",
        "            failures.append(error)\n", "            raise\n",
        ("tests/integration/lake/test_derived.py::test_results_that_are_refused_keep_no_other_from_its_turn",),
    ),
    Mechanism(
        "P4",
        "sessions, joins and alerts with new events are computed again",
        "spark/batch/stateful_planner.py",
        'where batch > {before} or {is_open})',
        'where {is_open})',
        (
            "tests/integration/lake/test_derived.py::test_whatever_comes_when_the_published_rows_are_exact_and_explained",
        ),
    ),
    Mechanism(
        "P3",
        "lost rows that came back are put back where they were counted",
        "spark/batch/comparer.py",
        'history = f"(from {self.rows} union all by name from {lost})"',
        'history = self.rows',
        (
            "tests/integration/lake/test_histories.py::test_lost_rows_that_came_back_are_counted_twice_by_the_speed_layer_and_explained",
        ),
    ),
    Mechanism(
        "P3",
        "a measure is compared with the batches that the speed layer has it of",
        "spark/batch/comparer.py",
        'where "$is_late_hour" or batch >= {batch}',
        'where true',
        (
            "tests/integration/lake/test_histories.py::test_an_aggregate_and_a_measure_that_are_added_to_a_stream_that_runs",
        ),
    ),
    Mechanism(
        "P4", "a backfill recomputes the hours that it is asked for", "spark/batch/plan.py",
        "forced[0] <= hour.hour < forced[1]", "False",
        ("tests/unit/spark/batch/test_plan.py::test_forced_hours_are_recomputed_without_news",),
    ),
    Mechanism(
        "P5", "batch runs take turns, whoever starts them", "infra/locks/batch_lock.py",
        "select pg_try_advisory_lock(%(key)s)", "select %(key)s > 0",
        ("tests/integration/test_exclusive.py::test_a_second_holder_waits_and_is_told_for_whom",),
    ),
    Mechanism(
        "P4", "published hours with new rows are recomputed", "spark/batch/plan.py",
        "(hour.new_rows or (forced", "(False or (forced",
        ("tests/unit/spark/batch/test_plan.py",
         "tests/integration/lake/test_reconcile.py::test_each_run_recomputes_what_changed_and_explains_it"),
    ),
    Mechanism(
        "P5",
        "no pass, no publication",
        "spark/batch/reconciliation.py",
        '        require_success(stream, outcomes)\n',
        '',
        (
            "tests/integration/lake/test_reconcile.py::test_a_failing_expectation_publishes_nothing",
        ),
    ),
    Mechanism(
        "P5", "what a contract refers to is looked up", "spark/quality/suites.py",
        "    for name, lookup in contract.quality.references.items():\n",
        "    for name, lookup in dict[str, Any]().items():\n",
        ("tests/integration/lake/test_suites.py::test_each_thing_that_is_wrong_is_found_and_named",),
    ),
    Mechanism(
        "P5", "expectations on rows share a job", "spark/quality/auditor.py",
        'else "BOOLEAN_ONLY"', 'else "SUMMARY"',
        ("tests/integration/lake/test_suites.py"
         "::test_many_rows_are_audited_by_spark_and_more_expectations_are_no_more_jobs",),
    ),
    Mechanism(
        "P5",
        "nothing unexplained of velocity, sessions and joins is published",
        "spark/batch/stateful_reconciliation.py",
        '            self._refuse(plan, f"(select * from {found} where cause = \'unexplained\')")\n',
        '            pass\n',
        (
            "tests/integration/lake/test_derived.py::test_lost_rows_are_unexplained_and_publish_nothing_and_a_dead_run_is_undone",
        ),
    ),
    Mechanism(
        "P5", "what a run refused to publish is marked where it goes on being served", "spark/serving/views.py",
        'return f"coalesce({closes_at} <= {refused}, false)"', 'return "false"',
        ("tests/integration/lake/test_reconcile.py::test_a_failing_expectation_publishes_nothing",
         "tests/integration/lake/test_derived.py"
         "::test_lost_rows_are_unexplained_and_publish_nothing_and_a_dead_run_is_undone"),
    ),
    Mechanism(
        "P5", "what was refused is not forgotten by the next run", "dags/reconcile.py",
        "    if behind(contracts, stream, in_force(publications(config.lake_uri))):\n        return None\n", "",
        ("tests/unit/dags/test_reports.py::test_reconciles_again_what_was_published_without_its_join",),
    ),
    Mechanism(
        "P6", "a stream without topics halts alone", "spark/speed/ingest_query.py",
        '                require_topics(settings, self.contract, "stream")\n', "                pass\n",
        ("tests/integration/test_restart.py"
         "::test_a_stream_that_nobody_provisioned_halts_alone_and_starts_when_it_is",),
    ),
    Mechanism(
        "P6", "a checkpoint that does not fit bronze is refused", "spark/speed/checkpoint/ingest_start.py",
        "    check.require_fit(_misfit(contract, settings, generation, log, start))\n", "",
        ("tests/unit/spark/speed/checkpoint/test_ingest_start.py::test_an_old_copy_of_the_checkpoint_is_refused",),
    ),
    Mechanism(
        "P6", "a contract that changed what may not change is refused", "spark/speed/checkpoint/ingest_start.py",
        "    check.require_unchanged(contract, before, fingerprint(contract), NEW_NAME)\n", "",
        ("tests/unit/spark/speed/checkpoint/test_ingest_start.py::test_the_fingerprint_is_noted_beside_the_checkpoint_and_remembers",),
    ),
    Mechanism(
        "P6", "a state that a changed contract would break is refused", "spark/speed/checkpoint/stateful_start.py",
        "    check.require_unchanged(", "    (lambda *_: None)(",
        ("tests/unit/spark/speed/checkpoint/test_stateful_start.py"
         "::test_a_deployment_that_a_state_would_not_survive_is_refused_with_the_way_out",
         "tests/unit/spark/speed/checkpoint/test_stateful_start.py"
         "::test_rows_of_another_kind_or_type_need_another_name_and_a_reset_is_not_offered"),
    ),
    Mechanism(
        "P6", "a state's checkpoint that does not fit its table is refused", "spark/speed/checkpoint/stateful_start.py",
        "    check.require_fit(", "    str(",
        ("tests/unit/spark/speed/checkpoint/test_stateful_start.py::test_an_old_copy_of_the_lake_is_refused",
         "tests/unit/spark/speed/checkpoint/test_stateful_start.py::test_an_old_copy_of_the_checkpoint_is_refused",
         "tests/unit/spark/speed/checkpoint/test_stateful_start.py::test_a_checkpoint_of_an_older_generation_is_refused"),
    ),
    Mechanism(
        "P6", "what a state's checkpoint lacks is noticed before its query starts",
        "spark/speed/checkpoint/stateful_start.py",
        "log = check.readable(lambda: spark_log.read(location, kafka=False))",
        'log = spark_log.Log(max(spark_log.numbers(f"{location}/offsets", r"(\\d+)"), default=None))',
        ("tests/unit/spark/speed/checkpoint/test_stateful_start.py::test_what_is_missing_or_broken_is_refused",),
    ),
    Mechanism(
        "P6", "the number of a lost generation is not used again", "spark/speed/checkpoint/stateful_start.py",
        "max(generations.generation(settings, title), batch_numbers.generation_of(newest)) + 1",
        "generations.generation(settings, title) + 1",
        ("tests/unit/spark/speed/checkpoint/test_stateful_start.py::test_a_checkpoint_of_an_older_generation_is_refused",),
    ),
    Mechanism(
        "P6", "a stateful query that cannot be built halts alone", "spark/speed/stateful_query.py",
        "        except Exception as error:  # a refused", "        except Halt as error:  # a refused",
        ("tests/integration/lake/test_derived.py::test_a_query_that_cannot_be_built_halts_itself_alone",),
    ),
    Mechanism(
        "P6", "a query that goes on soon is no news for people", "spark/speed/standstill.py",
        "        if since > self.clock():\n            return None\n", "",
        ("tests/integration/lake/test_derived.py"
         "::test_a_column_that_a_table_gains_while_it_runs_is_no_news_and_the_next_try_goes_on",
         "tests/integration/lake/test_derived.py"
         "::test_a_query_that_fails_halts_itself_and_goes_on_when_it_is_tried_again"),
    ),
    Mechanism(
        "P6", "what Spark says of a broken state is told in words", "spark/speed/heartbeat.py",
        """re.split(r"\\n(?:=== Streaming Query ===|\\s+at |\\s+\\d+: )", str(error))[0].strip()""",
        "str(error).strip()",
        ("tests/integration/lake/test_derived.py"
         "::test_a_damaged_state_is_told_in_words_with_a_way_out_that_leads_out",),
    ),
    Mechanism(
        "P11", "what an ingest fails of halts it alone", "spark/speed/ingest_query.py",
        "        except Exception as error:  # a refused", "        except Halt as error:  # a refused",
        ("tests/integration/test_isolation.py::test_what_is_broken_before_the_driver_starts[bronze_log_cut-troubled]",),
    ),
    Mechanism(
        "P11", "a contract that cannot be read halts its stream alone", "spark/speed/attendant.py",
        "            except ContractError as error:\n", "            except ZeroDivisionError as error:\n",
        ("tests/integration/test_isolation.py"
         "::test_what_is_broken_before_the_driver_starts[contract_cut-cannot be read]",),
    ),
    Mechanism(
        "P11", "who reads a contract goes by the one that was deployed last", "infra/deployed.py",
        "    return readable(settings.contracts, settings.deployed_dir)\n", "    return readable(settings.contracts)\n",
        ("tests/unit/infra/test_deployed.py::test_an_edit_is_in_service_once_it_is_deployed",
         "tests/unit/infra/test_deployed.py::test_a_broken_contract_hides_no_other_and_its_own_stays_in_service"),
    ),
    Mechanism(
        "P11", "a contract is in service once its ingest has started with it", "spark/speed/attendant.py",
        "            deploy(self._settings, contract)\n", "            pass\n",
        ("tests/integration/test_isolation.py"
         "::test_what_is_broken_before_the_driver_starts[contract_cut-cannot be read]",),
    ),
    Mechanism(
        "P11", "a table that cannot be read is an error of who needs it", "spark/serving/duck.py",
        "        except UNREADABLE:  # a damaged", "        except duckdb.BinderException:  # a damaged",
        ("tests/integration/test_isolation.py::test_what_is_broken_before_the_driver_starts[bronze_log_cut-troubled]",),
    ),
    Mechanism(
        "P11", "pauses between tries grow", "spark/speed/standstill.py",
        "FIRST_PAUSE * 2 ** min(self._failures, 10)", "FIRST_PAUSE",
        ("tests/unit/spark/speed/test_standstill.py"
         "::test_pauses_double_up_to_the_longest_and_begin_anew_after_a_finished_batch",),
    ),
    Mechanism(
        "P11", "a lost lease ends the driver", "spark/speed/standstill.py",
        "words(self.failure) if isinstance(self.failure, LeaseLost) else None", "None",
        ("tests/unit/spark/speed/test_standstill.py::test_a_lost_lease_alone_concerns_all",),
    ),
    Mechanism(
        "P6", "a deployment looks at states too", "infra/driver/actions.py",
        "            stateful_start.opening(contract, result, settings)\n", "            pass\n",
        ("tests/unit/spark/speed/checkpoint/test_stateful_start.py"
         "::test_a_deployment_that_a_state_would_not_survive_is_refused_with_the_way_out",),
    ),
    Mechanism(
        "P6", "a reset starts where bronze ends", "spark/speed/checkpoint/ingest_start.py",
        "start = {partition: max(end, first[partition]) for partition, end in ends.items() if partition in first}",
        "start = {}",
        ("tests/integration/test_restart.py"
         "::test_a_reset_loses_and_doubles_nothing_wherever_the_last_batch_ended",),
    ),
    Mechanism(
        "P6", "a reset finishes the batch that had reached bronze", "spark/speed/checkpoint/ingest_start.py",
        "unfinished=start.after if start and not start.finished else None", "unfinished=None",
        ("tests/integration/test_restart.py"
         "::test_a_second_reset_before_the_first_generation_ran_finishes_the_same_batch",),
    ),
    Mechanism(
        "P6", "a reset makes a generation of its own", "spark/speed/checkpoint/ingest_start.py",
        "batch_numbers.generation_of(after or 0)) + 1", "batch_numbers.generation_of(after or 0))",
        ("tests/integration/test_restart.py"
         "::test_a_reset_loses_and_doubles_nothing_wherever_the_last_batch_ended",),
    ),
    Mechanism(
        "P6", "what was made before a reset of a state counts no more", "spark/serving/views.py",
        "coalesce(max({number}) - max({number}) % {generation}, 0)", "coalesce(min({number}), 0)",
        ("tests/integration/lake/test_derived.py"
         "::test_a_changed_query_is_refused_and_a_reset_makes_everything_again",),
    ),
    Mechanism(
        "P6", "a halt is reported while the driver lives", "dags/stream_supervisor.py",
        'if event["reason"] in ("halted", "behind", "transaction"):', 'if event["reason"] == "never":',
        ("tests/unit/infra/driver/test_process.py::test_a_halt_fails_the_task_and_leaves_the_driver_alone",),
    ),
    Mechanism(
        "P6", "only who has the lease notes a batch as done", "spark/speed/ingest_query.py",
        "self.may_commit()  # else Spark would note", "# else Spark would note",
        ("tests/integration/test_restart.py"
         "::test_a_batch_is_not_noted_by_a_driver_that_has_lost_its_lease_meanwhile",),
    ),
    Mechanism(
        "P6", "a stop that overtakes a start counts", "dags/stream_supervisor.py",
        "if found != before and held(config):", "if False:",
        ("tests/unit/infra/driver/test_restart_policy.py::test_a_stream_that_is_stopped_while_its_driver_is_started_stays_stopped",),
    ),
    Mechanism(
        "P6", "a query that hangs before a batch is noticed", "infra/driver/airflow_triggers.py",
        ' or query.get("busy")', "",
        ("tests/unit/infra/driver/test_airflow_triggers.py::test_a_query_that_hangs_before_its_batch_is_stuck",),
    ),
    Mechanism(
        "P6", "a stream that falls behind is reported", "infra/driver/airflow_triggers.py",
        "elif behind := progress.behind(queries, now, limit):", 'elif behind := "":',
        ("tests/unit/infra/driver/test_airflow_triggers.py::test_a_driver_that_falls_behind_lives",),
    ),
    Mechanism(
        "P6", "a driver that dies of its first batch each time is a crash loop", "infra/driver/process.py",
        'if any(q.get("lag") and', 'if any(False and',
        ("tests/unit/infra/driver/test_restart_policy.py"
         "::test_a_driver_that_dies_of_its_first_batch_dies_young_however_long_that_takes",),
    ),
    Mechanism(
        "P6", "a driver is asked by a signal before it is killed", "infra/driver/process.py",
        "ways.insert(0, (signal.SIGTERM, min(timeout, 10.0)))", "pass",
        ("tests/unit/infra/driver/test_process.py::test_a_driver_that_misses_the_marker_is_asked_by_a_signal_before_it_is_killed",),
    ),
    Mechanism(
        "P4", "an event of the future closes no hour", "spark/transforms/validate.py",
        "reason: Any = F.when(ahead,", "reason: Any = F.when(F.lit(False),",
        ("tests/unit/spark/transforms/test_decode.py"
         "::test_an_event_of_the_future_is_a_dead_letter_and_one_a_little_ahead_is_not",),
    ),
    Mechanism(
        "P6", "a crash loop opens the breaker", "infra/driver/restart_policy.py",
        "    if deaths >= BACKOFF.attempts:\n", "    if False:\n",
        ("tests/unit/infra/driver/test_restart_policy.py"
         "::test_a_crash_loop_opens_the_breaker_until_it_cooled_down_and_one_long_life_closes_it",),
    ),
    Mechanism(
        "P6", "a batch that does not fit into memory is read in pieces", "spark/speed/ingest.py",
        "if OUT_OF_MEMORY not in str(error) or self.in_pieces is None:", "if True:",
        ("tests/integration/test_sizes.py"
         "::test_what_does_not_fit_into_memory_is_quarantined_by_its_offset_and_stops_nobody",),
    ),
    Mechanism(
        "P6", "a task that lacks memory ends no driver", "spark/session.py",
        '"spark.executor.killOnFatalError.depth": "0",', "",
        ("tests/integration/test_sizes.py"
         "::test_what_does_not_fit_into_memory_is_quarantined_by_its_offset_and_stops_nobody",),
    ),
    Mechanism(
        "P6", "an alert that is too large for its topic comes without its record", "spark/transforms/alerts.py",
        "fits = size <= sizes.of_topic(contract) - sizes.BATCH_OVERHEAD", "fits = F.lit(True)",
        ("tests/unit/spark/transforms/test_alerts.py"
         "::test_an_alert_is_as_large_as_its_topic_takes_or_comes_without_its_record",
         "tests/integration/test_lane.py"
         "::test_an_alert_that_is_larger_than_its_topic_takes_comes_without_its_record_and_the_lane_goes_on"),
    ),
    Mechanism(
        "P6", "a lane sends what its topic takes", "spark/speed/alert_lane.py",
        "**self._bounds(), ", "",
        ("tests/integration/test_lane.py"
         "::test_an_alert_that_is_larger_than_its_topic_takes_comes_without_its_record_and_the_lane_goes_on",),
    ),
    Mechanism(
        "P6", "a lane that choked on a record goes on behind the ingest", "spark/speed/checkpoint/lane_start.py",
        "if offsets is None or behind_ingest:", "if offsets is None:",
        ("tests/unit/spark/speed/test_alert_lane.py::test_a_lane_that_choked_on_a_record_goes_on_behind_the_ingest",),
    ),
    Mechanism(
        "P8", "what is too large for its topic is a pointer to bronze", "spark/speed/dead_letters.py",
        "(size <= sizes.of_topic(contract))", "(size <= 1 << 40)",
        ("tests/integration/test_sizes.py::test_what_the_topic_takes_is_one_row_and_one_letter",),
    ),
    Mechanism(
        "P8", "a pointer's bytes come back from bronze", "producers/replay.py",
        'outcome=Outcome("retry", letter.restored(found))', 'outcome=Outcome("retry", letter)',
        ("tests/integration/test_sizes.py"
         "::test_a_letter_of_any_size_comes_back_byte_for_byte_and_holds_up_no_other",),
    ),
    Mechanism(
        "P8", "a client sends what the topic takes", "schemas/sizes.py",
        '"message.max.bytes": _LARGEST,', "",
        ("tests/integration/test_sizes.py"
         "::test_a_letter_of_any_size_comes_back_byte_for_byte_and_holds_up_no_other",
         "tests/integration/test_sizes.py::test_produce_sends_what_the_topic_takes"),
    ),
    Mechanism(
        "P8", "a letter that a topic refuses holds up no other", "producers/replay.py",
        "except TooLarge:", "except ZeroDivisionError:",
        ("tests/integration/test_sizes.py::test_a_letter_that_the_retry_topic_does_not_take_is_parked_alone",),
    ),
    Mechanism(
        "P8", "a producer may have headers named as the platform's", "schemas/dead_letter.py",
        "(*headers[:begin], *(header for", "(*(), *(header for",
        ("tests/unit/schemas/test_dead_letter.py::test_headers_of_a_producer_survive_whatever_their_names_are",),
    ),
    Mechanism(
        "P8", "a letter is decided upon once", "infra/commands/dead_letters.py",
        "if row[\"id\"] in waiting]:", "if False]:",
        ("tests/integration/test_dead_letters.py"
         "::test_an_approved_letter_goes_through_the_ingest_as_it_was_any_number_of_times",),
    ),
    Mechanism(
        "P8", "good letters that come back do not hide a storm", "spark/speed/ingest.py",
        "policy.storm_minimum if written.replays else written.rows", "written.rows",
        ("tests/integration/lake/test_ingest_batch.py::test_good_letters_that_come_back_do_not_hide_a_storm",),
    ),
    Mechanism(
        "P8", "what a replay sent again is no storm", "spark/speed/ingest.py",
        'first = F.col("attempt") == 0', "first = F.lit(True)",
        ("tests/integration/lake/test_ingest_batch.py::test_letters_that_a_replay_sent_again_are_no_storm",),
    ),
    Mechanism(
        "P6", "Spark's classes come from an archive", "spark/session.py",
        '{collector}{compiler}{classes}"', '{collector}{compiler}"',
        ("tests/integration/test_faults.py::test_the_driver_has_its_classes_from_the_archive",),
    ),
    Mechanism(
        "P6", "what a killed scheduler or triggerer had in hand is taken over at once", "infra/local/component.py",
        "end_predecessor(settings(), component)", "0",
        ("tests/integration/test_stack.py::test_comes_back_after_kill_9[airflow-triggerer]",),
    ),
    Mechanism(
        "P6", "a driver is known again when the clock was set", "infra/driver/process.py",
        "process.create_time() - psutil.boot_time()", "process.create_time()",
        ("tests/unit/infra/driver/test_process.py::test_a_driver_is_known_again_when_the_clock_was_set",),
    ),
    Mechanism(
        "P6", "a state of before it was noted is refused if it has changed", "spark/speed/checkpoint/stateful_start.py",
        '    if "within" in found.query and "state" not in found.query:', "    if False:",
        ("tests/unit/spark/speed/checkpoint/test_stateful_start.py::test_a_state_of_before_it_was_noted_is_refused_if_it_has_changed",),
    ),
    Mechanism(
        "P6", "the second part of a run that a late event splits is reported", "spark/transforms/velocity.py",
        "event.at in reported, above=", "event.at in reported | is_above, above=",
        ("tests/unit/spark/transforms/test_velocity.py"
         "::test_in_whatever_order_they_come_each_run_above_the_limit_is_told_once_at_most",),
    ),
    Mechanism(
        "P6", "a driver whose clock was set back is replaced", "spark/speed/driver.py",
        "        if back := clock.set_back():\n", "        if back := 0:\n",
        ("tests/integration/test_faults.py::test_nothing_is_lost_or_doubled[clock-jumps]",),
    ),
    Mechanism(
        "P6", "a scheduler whose workers were killed ends", "infra/local/executor.py",
        "if killed:", "if False:",
        ("tests/integration/test_stack.py::test_tasks_are_done_after_idle_workers_were_killed",),
    ),
    Mechanism(
        "P6", "a crashed broker's registration is ended before it starts", "infra/local/kafka_start.py",
        "    if not clean.exists():\n        end_registration(java, fencing)\n", "",
        ("tests/integration/test_stack.py::test_transactions_that_a_crash_left_half_ended_are_ended",),
    ),
    Mechanism(
        "P6", "small files are merged", "spark/speed/small_files.py",
        "self._batches = LOOK if self.merge() else 0", "self._batches = 0",
        ("tests/unit/spark/speed/test_small_files.py::test_files_are_merged_as_batches_pass",
         "tests/unit/spark/speed/test_small_files.py::test_a_stream_that_is_behind_is_looked_after_less_often_but_it_is"),
    ),
    Mechanism(
        "P6", "small files of velocity, sessions and joins are merged", "spark/speed/stateful_query.py",
        "                upkeep.after_batch(waiting=False)", "                pass",
        ("tests/integration/lake/test_derived.py::test_an_hour_of_batches_leaves_few_files_and_the_same_rows",),
    ),
    Mechanism(
        "P6", "small files of alerts are merged", "spark/speed/alert_log.py",
        "        self._upkeep.after_batch(waiting=False)\n", "",
        ("tests/unit/spark/speed/test_small_files.py::test_files_and_log_of_alerts_are_bounded",),
    ),
    Mechanism(
        "P5", "hours of which the speed layer has not all are not compared", "spark/batch/store.py",
        "for name, since in found.items() if since]", "for name, since in found.items() if False]",
        ("tests/integration/lake/test_histories.py"
         "::test_what_is_kept_no_longer_is_neither_compared_nor_computed_again",),
    ),
    Mechanism(
        "P4",
        "hours that are not kept any more are not made again",
        "spark/batch/planner.py",
        'kept_since = store.kept_since()  #',
        'kept_since = None  #',
        (
            "tests/integration/lake/test_histories.py::test_what_is_kept_no_longer_is_neither_compared_nor_computed_again",
        ),
    ),
    Mechanism(
        "P4",
        "times in the statistics of files are cut to milliseconds",
        "spark/lake/columnar.py",
        'high = high + STEP if',
        'high = high if',
        (
            "tests/unit/spark/lake/test_columnar.py::test_a_file_with_a_row_that_is_wanted_is_never_left_out",
        ),
    ),
    Mechanism(
        "P4",
        "what is read for repeats ends where the contract says",
        "spark/batch/planner.py",
        'return around is None or self._may_hold(file, "event_time", around)',
        'return True',
        (
            "tests/integration/lake/test_repeats.py::test_what_is_read_for_repeats_ends_where_the_contract_says",
        ),
    ),
    Mechanism(
        "P6", "what a crash left without a commit is removed", "spark/speed/small_files.py",
        "dry_run=False, full=True", "dry_run=False",
        ("tests/unit/spark/speed/test_small_files.py::test_a_crash_while_files_are_merged_loses_nothing",),
    ),
    Mechanism(
        "P7", "files are merged by the lease's owner alone", "spark/speed/small_files.py",
        "        self.may_commit()\n        try:\n            found", "        try:\n            found",
        ("tests/unit/spark/speed/test_small_files.py::test_nothing_is_merged_without_the_lease",),
    ),
    Mechanism(
        "P7", "only the newest epoch may commit", "infra/locks/driver_lease.py",
        "        if self._one(_CHECK, epoch=epoch) is None:\n            raise self._lost(epoch)\n",
        "        self._one(_CHECK, epoch=epoch)\n",
        ("tests/integration/test_takeover.py::test_a_driver_paused_past_its_lease_is_fenced_and_replaced",
         "tests/integration/test_lease.py",
         "tests/integration/test_faults.py::test_nothing_is_lost_or_doubled[driver-paused]"),
    ),
    Mechanism(
        "P8", "a storm stops before anything goes onward", "spark/speed/ingest.py",
        "            self._stop_poison(written, number)\n", "            pass\n",
        ("tests/integration/lake/test_ingest_batch.py"
         "::test_a_poison_storm_stops_before_anything_is_sent_onward",
         "tests/integration/test_restart.py::test_a_storm_goes_onward_once_after_somebody_accepted_it"),
    ),
    Mechanism(
        "P8", "tombstones are no storm", "spark/speed/ingest.py",
        "bad = written.rejected.where(first & ~tombstone)", "bad = written.rejected.where(first)",
        ("tests/integration/lake/test_ingest_batch.py::test_tombstones_are_no_storm_and_hide_none[skip]",),
    ),
    Mechanism(
        "P8", "a tombstone that is skipped is no dead letter", "spark/speed/dead_letters.py",
        'rejected.where(F.col("error_class") != TOMBSTONE)', "rejected.where(F.lit(True))",
        ("tests/integration/lake/test_ingest_batch.py::test_tombstones_are_no_storm_and_hide_none[skip]",),
    ),
    Mechanism(
        "P8", "the storm of one batch is accepted, and no other", "spark/speed/checkpoint/ingest_start.py",
        "/accepted/{batch}", "/accepted/all",
        ("tests/integration/test_restart.py::test_a_storm_goes_onward_once_after_somebody_accepted_it",),
    ),
    Mechanism(
        "P8", "an accepted storm goes onward once", "spark/speed/ingest.py",
        "if self.storm_accepted(number):", "if True:",
        ("tests/integration/test_restart.py::test_a_storm_goes_onward_once_after_somebody_accepted_it",),
    ),
    Mechanism(
        "P8", "a broker does not forget how far the replays are", "producers/replay.py",
        "session.transaction([], known)", "pass",
        ("tests/integration/test_replay.py::test_each_run_says_again_how_far_they_are",),
    ),
    Mechanism(
        "P8", "a decision that could not be carried out can be taken again", "producers/replay_policy.py",
        "if DECISION in letter.about and attempt is not None:", "if False:",
        ("tests/unit/producers/test_replay_policy.py"
         "::test_what_a_person_decided_is_done_whatever_the_policy_says[ponder-park-10-rule]",
         "tests/integration/test_sizes.py::test_a_letter_that_the_retry_topic_does_not_take_is_parked_alone"),
    ),
    Mechanism(
        "P8", "a replay that Kafka forgot goes on by its own record", "producers/replay.py",
        "if start < 0 < self._ends[partition]:", "if False:",
        ("tests/integration/test_dead_letters.py"
         "::test_a_replay_goes_on_where_it_was_when_kafka_has_forgotten_its_offsets",),
    ),
    Mechanism(
        "P8", "what is replayed is read in the same transaction", "producers/transactions.py",
        "                    self.commit_with(self._producer, partition, offset)\n",
        "                    pass\n",
        ("tests/integration/test_replay.py::test_a_second_run_changes_nothing",
         "tests/integration/test_faults.py::test_nothing_is_lost_or_doubled[replay-killed]"),
    ),
    Mechanism(
        "P1", "only records that the ingest accepts alert", "spark/transforms/alerts.py",
        'F.col("accepted") & ', "",
        ("tests/unit/spark/transforms/test_alerts.py::test_generated_and_bad_records_alert_as_duckdb_says",),
    ),
    Mechanism(
        "P6", "an alert that is told again is logged once", "spark/speed/alert_log.py",
        "            del found[known]\n", "            pass\n",
        ("tests/integration/test_lane.py::test_the_log_has_each_alert_once_whatever_crashes",),
    ),
    Mechanism(
        "P6", "an alert is named after its original", "spark/transforms/alerts.py",
        'F.coalesce("original", coordinates)', "coordinates",
        ("tests/unit/spark/transforms/test_alerts.py::test_a_replayed_record_keeps_its_name",),
    ),
    Mechanism(
        "P6", "a lane that dies after each start is told", "spark/speed/alert_lane.py",
        "            if self._started_at is None or self._clock() - self._started_at >= REPORTED_AFTER:\n",
        "            if True:\n",
        ("tests/integration/test_lane.py"
         "::test_a_lane_that_dies_after_each_start_is_told_and_a_reset_loses_no_alert",),
    ),
    Mechanism(
        "P1", "a lane reads again what a schema that it did not know may have been in", "spark/speed/alert_lane.py",
        " or start.schemas not in (None, known):", ":",
        ("tests/integration/test_lane.py::test_a_schema_registered_before_the_lane_died_is_understood",),
    ),
    Mechanism(
        "P1", "a lane that begins again goes back one interval", "spark/speed/checkpoint/lane_start.py",
        "for batch in committed[1:]:", "for batch in committed:",
        ("tests/unit/spark/speed/test_alert_lane.py::test_a_lane_that_begins_again_goes_back_one_interval_and_not_to_where_the_ingest_is",
         "tests/integration/test_lane.py::test_a_schema_registered_before_the_lane_died_is_understood"),
    ),
    Mechanism(
        "P1", "a lane that begins again does not begin where the ingest is", "spark/speed/checkpoint/lane_start.py",
        "    offsets = _alerted_offsets(settings, contract.alerts_topic)\n", "    offsets = None\n",
        ("tests/unit/spark/speed/test_alert_lane.py::test_a_lane_that_begins_again_goes_back_one_interval_and_not_to_where_the_ingest_is",
         "tests/unit/spark/speed/test_alert_lane.py::test_what_cannot_be_read_is_passed_over_for_what_is_older",
         "tests/unit/spark/speed/test_alert_lane.py::test_a_crash_before_the_start_is_noted_loses_no_alert"),
    ),
    Mechanism(
        "P6", "what was settled before there were alerts alerts nobody", "spark/speed/checkpoint/lane_start.py",
        "        ingested = {} if settled is None else", "        ingested = {} if True else",
        ("tests/unit/spark/speed/test_alert_lane.py::test_a_first_lane_starts_where_the_ingest_has_settled",),
    ),
    Mechanism(
        "P6", "a lane whose checkpoint is damaged says how to go on", "spark/speed/checkpoint/lane_start.py",
        "    check.readable(lambda: spark_log.read(location))\n", "",
        ("tests/unit/spark/speed/test_alert_lane.py::test_a_damaged_checkpoint_is_refused_with_the_way_out",
         "tests/integration/test_lane.py"
         "::test_a_lane_that_dies_after_each_start_is_told_and_a_reset_loses_no_alert"),
    ),
    Mechanism(
        "P9", "no result is called as the alert lane", "schemas/contract/check_names.py",
        "        if name == LANE:\n", "        if False:\n",
        ("tests/unit/schemas/contract/test_check.py::test_a_name_that_something_else_has_is_an_error_for_everybody",),
    ),
    Mechanism(
        "P9", "no view is called as another one", "schemas/contract/check_names.py",
        "                if view in views:\n", "                if False:\n",
        ("tests/unit/schemas/contract/test_check.py::test_a_name_that_something_else_has_is_an_error_for_everybody",),
    ),
    Mechanism(
        "P6", "a transactional producer knows how far it was", "producers/produce.py",
        "        return max(0, sent.offset)\n", "        return 0\n",
        ("tests/integration/test_produce.py::"
         "test_a_killed_transactional_producer_shows_no_half_and_goes_on_where_it_was",),
    ),
    Mechanism(
        "P9", "a stream is a folder", "dags/wiring.py",
        'folder.name for folder in folders(settings().contracts)', 'name for name in ("flights",)',
        ("tests/unit/dags/test_policy.py::test_a_new_stream_is_a_folder",),
    ),
    Mechanism(
        "P10", "clients without a password are refused", "infra/local/kafka.py",
        "CLIENTS:SASL_SSL,", "CLIENTS:PLAINTEXT,",
        ("tests/integration/test_stack.py::test_kafka_refuses_plaintext_and_wrong_passwords",),
    ),
)  # fmt: skip


def without(mechanism: Mechanism, checkout: Path) -> None:
    """Takes `mechanism` out of `checkout`. Raises ValueError if its text does not stand there exactly once."""
    file = checkout / mechanism.file
    text = file.read_text()
    if (times := text.count(mechanism.text)) != 1:
        raise ValueError(f"{mechanism.file} has {times} times, not once: {mechanism.text!r}")
    file.write_text(text.replace(mechanism.text, mechanism.instead))


def survivors(mechanism: Mechanism) -> list[str]:
    """Those of its tests that did not fail without `mechanism`."""
    with tempfile.TemporaryDirectory(prefix="millrace-without-") as folder:
        copy = Path(folder) / "millrace"
        shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns(".git", ".millrace", ".venv", ".*_cache"))
        without(mechanism, copy)
        return [test for test in mechanism.tests if not _fails(test, copy)]


def _fails(test: str, checkout: Path) -> bool:
    """Whether the test itself failed: what it stands on (fixtures, a stack) must have worked."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=line", test]
    run = subprocess.run(command, cwd=checkout, check=False, stdout=subprocess.PIPE, text=True)
    sys.stdout.write(run.stdout)
    *_, summary = run.stdout.strip().splitlines() or [""]
    return run.returncode == FAILED and re.search(r"\b[1-9]\d* failed", summary) is not None and "error" not in summary


def main(wanted: list[str]) -> int:
    chosen = [it for it in MECHANISMS if not wanted or {it.promise, it.name} & set(wanted)]
    verdicts = [(it, survivors(it)) for it in chosen]
    for mechanism, passed in verdicts:
        sys.stdout.write(f"{mechanism.promise:4} {mechanism.name}: ")
        sys.stdout.write(f"NOT NOTICED by {', '.join(passed)}\n" if passed else "its tests fail without it\n")
    return 1 if any(passed for _, passed in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
