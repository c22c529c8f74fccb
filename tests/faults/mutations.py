"""Break the loop on purpose, once for each promise, and see that the tests say so.

    python -m tests.faults.mutations                    every mutant
    python -m tests.faults.mutations --only WORD ...    those whose names contain one of the words
    python -m tests.faults.mutations --list

Each mutant is a copy of the project with one thing wrong. The tests that are likely to catch it run first; only where
they are green does the whole order run. Whatever runs on a mutant has run green on an unchanged copy before. Ends with
code 1 where a mutant is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "services/tidemill"
JARS = ROOT / ".cache" / "kafka-jars"
LONGEST_RUN = 1200.0
LONGEST_TEST = 180

REFUSED = "tests/unit/stream/test_refused_records.py"
CRASH = "tests/unit/stream/test_loop_crash.py"
CHAIN = "tests/unit/stream/test_chain.py"
LOOP = "tests/unit/stream/test_loop_promises.py"
LOST = "tests/unit/stream/test_lost_offsets.py"
SOMEBODY = "tests/unit/stages/test_records_of_somebody_else.py"
LINEAR = "tests/unit/models/test_linear.py"
OTHERS = "tests/unit/features/test_remote_views.py"
AWAY = "tests/unit/features/test_store_away.py"
START = "tests/unit/runtime/test_start_without_a_store.py"
GATE = "tests/unit/stages/test_gate.py"
REGISTRY = "tests/unit/registry/test_registry.py"
BACK = "tests/unit/stages/test_versions_never_go_back.py"
HOSTILE = "tests/unit/registry/test_hostile_snapshots.py"
SIGNING = "tests/unit/registry/test_signing.py"
BROKER = "tests/contracts/test_broker.py"
VIEW = "tests/contracts/test_view.py"
PROMISES = "tests/contracts/test_promises.py"
ON_DISK = "tests/unit/stages/test_join.py::test_on_disk_it_remembers_the_same_after_each_record"
JOIN = "tests/unit/stages/test_join_definition.py"
CORRECTED = "tests/unit/stages/test_corrected_candidates.py"
STATE, MACHINE = "tests/unit/stream/test_local_state.py", "tests/faults/test_join_machine.py"
WATERMARK, AHEAD = "tests/unit/test_watermark.py", "tests/faults/test_times_ahead.py"
WHOLE = (CRASH, LOOP, "tests/contracts", "tests/faults", "tests/system/test_whole.py")


class Drift(Exception):  # noqa: N818  the source has moved on
    """A mutant does not fit the source any more."""


@dataclass(frozen=True)
class Mutant:
    """One thing that is broken.

    Parameters
    ----------
    file
        Below services/tidemill.
    old, new, also
        What is replaced by what; each old text must be there exactly once.
    likely
        Tests to run first: files, or `file::test`.
    """

    name: str
    says: str
    file: str
    old: str
    new: str
    likely: tuple[str, ...]
    also: tuple[tuple[str, str], ...] = ()

    def apply(self, source: str) -> str:
        """Return the broken source. Raises Drift where a text to replace is not there exactly once."""
        for old, new in ((self.old, self.new), *self.also):
            found = source.count(old)
            if found != 1:
                raise Drift(f"mutant {self.name}: {self.file} has {found} of this text, expected 1:\n{old}")
            source = source.replace(old, new)
        return source


MUTANTS = (
    # What is committed, and when.
    Mutant(
        "offsets-before-outputs", "offsets are committed in an earlier transaction than the outputs",
        "stream/loop.py",
        "if self._process(records, producer) or self._is_due_again():",
        "if records:\n"
        "                early = consumer.positions(tuple(self._partitions)).items()\n"
        "                producer.commit(self._head.marks(dict(early)), consumer)\n"
        "            if self._process(records, producer):",
        (f"{CRASH}::test_a_crash_at_any_emit_or_commit_loses_and_doubles_nothing",),
    ),
    Mutant(
        "map-keys-for-ever", "a writer remembers every key that a map ever had",
        "encoding/avro_codegen.py",
        "if len(self) < MAX_KEYS and len(made) <= MAX_KEY_BYTES:",
        "if MAX_KEYS:",
        ("tests/unit/encoding/test_avro_codegen.py",),
    ),
    Mutant(
        "read-keys-for-ever", "a reader remembers keys of maps of any size",
        "encoding/avro_codegen.py",
        "if len(self) < MAX_KEYS and len(data) <= MAX_KEY_BYTES:",
        "if len(self) < MAX_KEYS:",
        ("tests/unit/encoding/test_avro_codegen.py",),
    ),
    Mutant(
        "longer-numbers-cut", "a number of more than six bytes is read as one of six",
        "encoding/avro_codegen.py",
        "if len(last) == 3 and last[0] > 127 < last[1] and last[2] < 128:",
        "if len(last) == 3 and last[0] > 127 < last[1]:",
        (
            "tests/unit/encoding/test_avro_codegen.py"
            "::test_longs_near_each_power_of_two_and_times_of_many_years_are_read_as_they_were_written",
        ),
    ),
    Mutant(
        "records-gather-past-the-delay", "records gather by what a transaction costs, however long that is",
        "stream/pace.py",
        "return max(0.0, min(self._gaps * cost, self.max_delay - cost))",
        "return self._gaps * cost",
        ("tests/unit/stream/test_pace.py",),
    ),
    Mutant(
        "pace-from-the-first-batch", "what the first batch cost decides for ever how long records gather",
        "stream/pace.py",
        "self._cost = seconds if self._cost is None else self._cost + NEWEST_PART * (seconds - self._cost)",
        "self._cost = seconds if self._cost is None else self._cost",
        ("tests/unit/stream/test_pace.py",),
    ),
    Mutant(
        "pace-not-asked", "the loop begins every batch at once",
        "stream/loop.py",
        "left = self._last_batch + self._pace.gather - self.clock()",
        "left = self._last_batch - self.clock()",
        ("tests/unit/stream/test_pace.py",),
    ),
    Mutant(
        "offsets-not-in-transaction", "offsets are committed by the consumer, without the group's metadata",
        "stream/kafka/producer.py",
        'self._decide("sending offsets", self._client.send_offsets_to_transaction, committable(offsets), metadata)',
        "consumer.commit(offsets)",
        (f"{PROMISES}::test_a_commit_that_fails_leaves_neither_outputs_nor_offsets",),
    ),
    Mutant(
        "metadata-of-nobody", "the transaction is told the group, and not the member",
        "stream/kafka/consumer.py",
        "return self._client.consumer_group_metadata()",
        'return Consumer({**self._common, "group.id": self._group}).consumer_group_metadata()',
        (f"{PROMISES}::test_a_member_that_is_out_of_date_commits_nothing",),
        (
            (
                "        self._waiting_since = 0.0\n        self._client = Consumer(",
                "        self._waiting_since = 0.0\n        self._common, self._group = common, group\n"
                "        self._client = Consumer(",
            ),
        ),
    ),
    Mutant(
        "metadata-not-kept-by-the-loop", "the joiner's commit metadata is not committed beside its offset",
        "stream/group.py",
        "                    self.processor.commit_metadata(partition),\n",
        "                    restore.CommitMetadata(),\n",
        (f"{CRASH}::test_a_crash_at_any_emit_or_commit_loses_and_doubles_nothing",),
    ),
    Mutant(
        "grown-again-not-noticed", "a log that was cut and has grown again past the committed offset is read on",
        "stream/restore.py",
        "if actual.get(partition) != expected[partition]",
        "if not offset + 1",
        (LOST,),
    ),
    Mutant(
        "metadata-not-kept-in-transactions", "the commit metadata is lost on its way to Kafka",
        "stream/kafka/producer.py",
        "send_offsets_to_transaction, committable(offsets), metadata)",
        "send_offsets_to_transaction, committable({p: Position(at.offset) for p, at in offsets.items()}), metadata)",
        (f"{BROKER}::test_records_and_offsets_become_visible_together_and_not_before",),
    ),
    Mutant(
        "auto-commit", "the client stores and commits offsets of what it fetched",
        "stream/kafka/consumer.py",
        '"enable.auto.commit": False,\n                "enable.auto.offset.store": False,',
        '"enable.auto.commit": True,\n                "enable.auto.offset.store": True,',
        (f"{PROMISES}::test_reading_commits_nothing",),
    ),
    Mutant(
        "positions-of-what-was-fetched", "positions are the client's, also of records that are held back",
        "stream/kafka/consumer.py",
        "positions = self._order.positions",
        "of_client = self._client.position([KafkaTopicPartition(*partition) for partition in partitions])\n"
        "        positions = {TopicPartition(p.topic, p.partition): p.offset for p in of_client if p.offset >= 0}",
        (f"{PROMISES}::test_positions_are_those_of_what_was_handed_out",),
    ),
    Mutant(
        "order-runs-ahead", "positions run ahead of what was released",
        "stream/order.py",
        "self.positions[partition] = held[cut - 1][1].offset() + 1",
        "self.positions[partition] = held[-1][1].offset() + 1",
        (LOOP,),
    ),
    Mutant(
        "assigned-twice", "the client is assigned in the callback, and again where to start is settled",
        "stream/kafka/consumer.py",
        "client.assign([])\n",
        "client.assign([KafkaTopicPartition(p.topic, p.partition, -2) for p in partitions])\n"
        "        client.pause(partitions)\n",
        (f"{PROMISES}::TestKafkaAlone::test_nothing_is_fetched_before_the_start_is_settled",),
    ),
    Mutant(
        "error-beside-an-offset", "an error beside a committed offset is read as nothing committed",
        "stream/kafka/consumer.py",
        "if p.error is not None:",
        "if False:",
        (f"{PROMISES}::TestKafkaAlone::test_an_error_beside_a_committed_offset_is_not_a_group_that_is_new",),
    ),
    Mutant(
        "order-takes-anything", "what the client fetched from elsewhere than it was told is done again",
        "stream/order.py",
        "if offset < following.get(partition, _NO_OFFSET):",
        "if offset < 0:",
        (f"{LOOP}::test_what_was_read_before_or_belongs_to_another_is_refused",),
    ),
    # Going back.
    Mutant(
        "no-seek", "after an abort the loop goes on where it was",
        "stream/loop.py",
        "self._settled = self.ready = False\n        self.watch.retry()",
        "self.ready = False\n        self.watch.retry()",
        (f"{CRASH}::test_an_aborted_commit_goes_back_and_ends_the_same",),
    ),
    Mutant(
        "no-seek-in-the-client", "a start does not take back what was fetched and held",
        "stream/kafka/consumer.py",
        "self._order.clear(dict(offsets))",
        "self._order.positions.update(offsets)",
        (f"{PROMISES}::test_a_start_forgets_what_was_held_back",),
    ),
    Mutant(
        "state-not-taken-back", "after an abort the state keeps what was not committed",
        "stream/loop.py",
        "group.drop_counts()\n        self._forget(self._partitions)",
        "group.drop_counts()",
        (f"{CRASH}::test_an_aborted_commit_goes_back_and_ends_the_same",),
    ),
    Mutant(
        "no-abort", "what was emitted before an abort goes out with the next commit",
        "stream/loop.py",
        "producer.abort()\n        except Retry:",
        "pass\n        except Retry:",
        (f"{CRASH}::test_an_aborted_commit_goes_back_and_ends_the_same",),
    ),
    Mutant(
        "rebuild-emits", "what is read again to rebuild state is emitted again",
        "stream/loop.py",
        "group.processor.process(batch, discard)",
        "group.processor.process(batch, self._emit)",
        (f"{CRASH}::test_an_aborted_commit_goes_back_and_ends_the_same",),
        (("self._restore(consumer, producer)\n", "self._emit = producer.emit; self._restore(consumer, producer)\n"),),
    ),
    # Several services in one process.
    Mutant(
        "chain-offsets-believed", "a chain does not compare the offsets that it counts with Kafka's",
        "stream/chain.py",
        "return {partition: self._next[partition] - 1 for partition in self._in_transaction}",
        "return {}",
        (f"{CHAIN}::TestWhoIsTheOnlyWriter::test_an_offset_that_kafka_counts_otherwise_aborts_and_what_is_made_of_it_is_right",),
    ),
    Mutant(
        "chain-joiner-keeps-records", "a joiner in a chain keeps records as objects until their labels come",
        "stages/joiner/service.py",
        "            value = bytes(value)\n",
        "            pass\n",
        (f"{CHAIN}::test_what_is_handed_on_is_what_decoding_gives_and_is_not_decoded_again",),
    ),
    Mutant(
        "chain-without-progress", "a chain writes the progress of its first service alone",
        "stream/loop.py",
        "for group, positions in ((self._head, head), *inner):\n                group.write_progress",
        "for group, positions in ((self._head, head),):\n                group.write_progress",
        (f"{CHAIN}::TestWhoIsTheOnlyWriter::test_a_service_that_never_ran_apart_goes_on_where_the_chain_was",),
    ),
    Mutant(
        "chain-passes-over-what-is-left", "a chain begins where its topics end, not where its services were",
        "stream/chain.py",
        "if at < self._next[p]}",
        "if at < 0}",
        (f"{CHAIN}::test_after_each_crash_another_way_to_run_them_goes_on_exactly_there",),
    ),
    Mutant(
        "chain-counts-what-is-left-short", "of what was written before, a chain says that it has read one record less",
        "stream/chain.py",
        "min(offset + 1, self._next[partition])",
        "offset + (partition.topic in self.written)",
        (f"{CHAIN}::test_after_each_crash_another_way_to_run_them_goes_on_exactly_there",),
    ),
    Mutant(
        "chain-not-fenced", "a service that starts by itself leaves the chain that did its work alone",
        "stream/restore.py",
        "instances.add(metadata.chained or metadata.instance)",
        "instances.add(metadata.instance)",
        (f"{CHAIN}::TestWhoIsTheOnlyWriter::test_a_service_of_its_own_fences_the_chain_off",),
    ),
    Mutant(
        "chain-named-as-its-first-service", "a service that goes on for a chain fences off the chain's first service, too",
        "stream/loop.py",
        "self.transactional_id = self.instance + (CHAIN_SUFFIX if service.chained else \"\")",
        "self.transactional_id = self.instance",
        (f"{CHAIN}::TestWhoIsTheOnlyWriter::test_services_that_go_on_for_a_chain_leave_each_other_alone",),
    ),
    Mutant(
        "chain-beside-its-service", "a chain begins while a service of its own still runs",
        "stream/group.py",
        'raise Retry(f"{self.service.name} still runs by itself: {error}") from error',
        "pass",
        (f"{CHAIN}::TestWhoIsTheOnlyWriter::test_a_chain_waits_while_a_service_of_its_own_runs",),
    ),
    Mutant(
        "chain-drops-what-is-keyed-otherwise", "an event of another instance's partition is dropped",
        "stream/chain.py",
        "self._send_again(key, partition, emit)\n                return",
        "return",
        (f"{CHAIN}::TestPartitions",),
    ),
    Mutant(
        "chain-stops-too-early", "what came before the fuse stopped the validator is not handed on",
        "stream/chain.py",
        "stopped, is_ready = error, True",
        "raise",
        (f"{CHAIN}::test_what_came_before_the_fuse_stopped_the_chain_is_predicted",),
    ),
    # Records that Kafka refuses for ever.
    Mutant(
        "refusal-is-a-pause", "a record that is refused for ever is tried again for ever",
        "stream/kafka/errors.py",
        "kind = Refused if error.code() in _REFUSED_CODES else Aborted",
        "kind = Aborted",
        ("tests/system/test_poison_kinds.py",),
    ),
    Mutant(
        "held-is-committed", "what was read and not processed yet is committed",
        "stream/loop.py",
        "up_to = {**ahead, **up_to}",
        "pass",
        (REFUSED,),
    ),
    Mutant(
        "refused-not-in-the-state", "a refused record is missing in the state until it is rebuilt",
        "stream/loop.py",
        "self.processor.process([record], discard)",
        "pass",
        (REFUSED,),
    ),
    Mutant(
        "pauses-begin-again", "each try to go back begins with the shortest pause",
        "stream/loop.py",
        "                self._pace.took(self._last_batch - began)\n",
        "                self._pace.took(self._last_batch - began)\n            self._failures = 0\n",
        (REFUSED,),
    ),
    Mutant(
        "known-size-waits", "what is known to be too large is looked for part by part, each of which must arrive",
        "stream/narrowing.py",
        "self._is_known = next_is_early and not self.is_on",
        "self._is_known = False",
        (REFUSED,),
    ),
    Mutant(
        "refused-example-again", "an example that was refused is made again by the record that comes last then",
        "stages/joiner/service.py",
        "if event.is_refused:",
        "if False:",
        (REFUSED,),
    ),
    # Records of somebody else.
    Mutant(
        "part-of-a-prediction", "an example is made of a part of a prediction",
        "stages/joiner/service.py",
        'self.records.prediction_log.decode(value)["features"]',
        "self.records.features.read(value, HEADER)[0]",
        (SOMEBODY,),
    ),
    Mutant(
        "any-number", "a complete record with NaN in it is read as one of ours",
        "encoding/codec.py",
        "if self._check is not None:",
        "if False:",
        (SOMEBODY,),
    ),
    Mutant(
        "any-time", "an event of any year is let pass",
        "stages/validator/rule_check.py",
        'f"    if not first_time <= (v := record[{stream.time!r}]) <= last_time: refuse_time({stream.time!r}, v)",',
        "",
        (SOMEBODY,),
    ),
    Mutant(
        "more-than-a-record", "what follows a record is not looked at",
        "encoding/codec.py",
        "if end != len(data):",
        "if False:",
        (SOMEBODY,),
    ),
    # Rebalances.
    Mutant(
        "no-on-lost", "partitions that were lost are kept",
        "stream/kafka/consumer.py",
        "self._on_revoke(client, partitions)",
        "del client, partitions",
        (f"{PROMISES}::TestKafkaAlone::test_partitions_that_were_lost_are_given_up",),
    ),
    Mutant(
        "revoked-not-told", "partitions that were revoked are kept",
        "stream/kafka/consumer.py",
        "self._revoked |= revoked",
        "del revoked",
        (f"{BROKER}::test_two_members_share_the_partitions_and_one_takes_over",),
        (("        self._assigned -= revoked\n", ""),),
    ),
    Mutant(
        "revoke-keeps-state", "a rebalance keeps the state of what was not committed",
        "stream/loop.py",
        "producer.abort()\n                self._forget(self._partitions)",
        "producer.abort()\n                self._dirty = False",
        (LOOP,),
    ),
    Mutant(
        "revoke-keeps-outputs", "a rebalance keeps the outputs of what was not committed",
        "stream/loop.py",
        "producer.abort()\n                self._forget(self._partitions)",
        "self._forget(self._partitions)",
        (LOOP,),
    ),
    Mutant(
        "old-state-believed", "state held before a rebalance is kept though another member has gone on",
        "stream/restore.py",
        "if state_offsets.get(partition) != resume.position.offset",
        "if partition not in state_offsets",
        (LOOP,),
    ),
    # Offsets that were taken away.
    Mutant(
        "progress-not-asked", "where committed offsets are gone the group begins again",
        "stream/restore.py",
        "for position in (progress, committed if is_own else None)",
        "for position in (committed if is_own else None,)",
        (LOST,),
    ),
    Mutant(
        "progress-after-the-transaction", "progress is written in the next transaction, and the last one is not known",
        "stream/loop.py",
        "        if producer.is_transactional:\n",
        "        if not producer.is_transactional:\n",
        (LOST,),
        (("        if not producer.is_transactional:  # later", "        if producer.is_transactional:  # later"),),
    ),
    Mutant(
        "hand-is-obeyed", "an offset that something else has set is taken",
        "stream/restore.py",
        "        if progress is None or progress.offset != committed.offset:\n",
        "        return committed\n        if progress is None or progress.offset != committed.offset:\n",
        (LOST,),
    ),
    Mutant(
        "created-again-is-the-same", "a topic that was created again is read from the old one's offset",
        "stream/restore.py",
        '[position for position in own if _topic_id(position) in ("", topic_id) or not topic_id]',
        "own",
        (LOST,),
    ),
    Mutant(
        "shorter-log-is-believed", "a log that was cut behind what was processed is read on at its end",
        "stream/restore.py",
        "if position.offset > log_end:",
        "if position.offset > 2**62:",
        (LOST,),
    ),
    Mutant(
        "no-keep-alive", "an idle group does not commit again",
        "stream/loop.py",
        "return not self._dirty and self.clock() - self._last_commit >= self.keep_alive",
        "return False",
        (LOST,),
    ),
    Mutant(
        "progress-behind-open-transactions-is-lost", "progress is read up to the first open transaction of anybody",
        "stream/ranges.py",
        "while (readable := broker.offset_range(partition))[1] < end:",
        "while not (readable := broker.offset_range(partition)):",
        ("tests/contracts/test_broker.py::test_progress_is_read_behind_an_open_transaction_of_another",),
    ),
    # Sending.
    Mutant(
        "buffer-error-swallowed", "a full queue drops records",
        "stream/kafka/producer.py",
        "self._wait_for_room()\n            except KafkaException as error:\n                raise",
        "return\n            except KafkaException as error:\n                raise",
        (f"{PROMISES}::TestKafkaAlone::test_a_full_queue_loses_nothing",),
    ),
    Mutant(
        "no-fencing", "every process has a transactional id of its own",
        "stream/kafka/producer.py",
        '"transactional.id": name',
        '"transactional.id": f"{name}.{time.time_ns()}"',
        (f"{BROKER}::test_a_later_producer_of_the_name_fences_the_earlier",),
    ),
    Mutant(
        "fenced-goes-on", "a process that was fenced takes its place back",
        "stream/kafka/errors.py",
        "if error.code() in _FENCED_CODES",
        "if error.code() in ()",
        (f"{PROMISES}::test_who_was_fenced_is_told_so_and_does_not_fence_back",),
    ),
    Mutant(
        "failures-unchecked", "a record that the broker refused is forgotten, its offset committed",
        "stream/kafka/producer.py",
        "        if refused:\n            topics",
        "        if ():\n            topics",
        (f"{PROMISES}::TestKafkaAlone::test_at_least_once_commits_no_offset_of_what_was_refused",),
    ),
    Mutant(
        "left-unchecked", "a record that was not sent yet is forgotten, its offset committed",
        "stream/kafka/producer.py",
        "        if left:\n            raise Aborted",
        "        if ():\n            raise Aborted",
        (f"{PROMISES}::TestKafkaAlone::test_at_least_once_commits_no_offset_of_what_is_not_sent",),
    ),
    Mutant(
        "offsets-before-flush", "at least once: offsets are committed before the outputs are sent",
        "stream/kafka/producer.py",
        "self._deliver()\n            if offsets:\n                assert isinstance(consumer, KafkaConsumer)  "
        "# noqa: S101  the same broker made both\n                consumer.commit(offsets)",
        "if offsets:\n                consumer.commit(offsets)  # type: ignore[union-attr]\n            self._deliver()",
        (f"{PROMISES}::TestKafkaAlone::test_at_least_once_commits_no_offset_of_what_was_refused",),
    ),
    Mutant(
        "letters-outside", "dead letters (what has headers) are sent at once by a plain producer",
        "stream/kafka/producer.py",
        "self._client.produce(topic, value, key, partition, headers=list(all_headers))",
        'plain = Producer({"bootstrap.servers": self._config["bootstrap.servers"]})\n'
        "                    plain.produce(topic, value, key, partition, headers=list(all_headers))\n"
        "                    plain.flush()",
        (f"{PROMISES}::test_a_dead_letter_is_part_of_the_transaction",),
    ),
    Mutant(
        "kept-by-the-producers-time", "a record has its producer's time for Kafka: history is deleted before it is read",
        "stream/kafka/producer.py",
        "self._client.produce(topic, value, key, partition, headers=list(all_headers))",
        "self._client.produce(topic, value, key, partition, timestamp=timestamp, headers=list(all_headers))",
        (f"{BROKER}::test_a_record_is_kept_by_when_it_was_written_even_where_producers_times_would_be",),
    ),
    Mutant(
        "any-timestamp", "a producer's clock may say anything",
        "stream/origin.py",
        "return timestamp if 0 <= timestamp <= now + MAX_AHEAD_MS else int(now)",
        "return timestamp if timestamp == timestamp else int(now)",
        ("tests/unit/stream/test_origin.py",),
    ),
    Mutant(
        "topics-not-watched", "a topic that grows while it is used is not noticed",
        "stream/loop.py",
        "now = self._declared.check(TOPIC_CHECK_TIMEOUT)",
        "now = self.broker.topic_states(sorted(self._topic_ids), TOPIC_CHECK_TIMEOUT)",
        ("tests/unit/stream/test_declared_topics.py",),
    ),
    Mutant(
        "topics-not-looked-at-first", "a service reads before it has looked at its topics",
        "stream/loop.py",
        "        self._declared.check()\n",
        "",
        ("tests/unit/stream/test_declared_topics.py",),
    ),
    # Reading.
    Mutant(
        "held-back-is-committed", "labels that are held back are committed with the events after them",
        "stream/loop.py",
        "for record in (*self._held, *self._unhurried.held):",
        "for record in self._held:",
        ("tests/unit/stream/test_unhurried.py::test_what_is_held_back_is_not_committed_and_another_process_begins_there",),
    ),
    Mutant(
        "held-back-twice", "what was held back when the loop went back is handled again",
        "stream/loop.py",
        "self._held, self._unhurried.held = [], []",
        "self._held = []",
        ("tests/unit/stream/test_unhurried.py::test_after_going_back_what_was_held_is_read_again_and_handled_once",),
    ),
    Mutant(
        "group-reads-uncommitted", "a service reads what is not committed",
        "stream/kafka/consumer.py",
        '"isolation.level": "read_committed",\n                "fetch.min.bytes"',
        '"isolation.level": "read_uncommitted",\n                "fetch.min.bytes"',
        (f"{PROMISES}::test_nobody_reads_what_was_aborted",),
    ),
    Mutant(
        "rebuild-reads-uncommitted", "a rebuild reads what is not committed",
        "stream/kafka/consumer.py",
        '"isolation.level": isolation,',
        '"isolation.level": "read_uncommitted",',
        (f"{PROMISES}::test_nobody_reads_what_was_aborted",),
    ),
    Mutant(
        "left-open-holds-back", "what an instance has left open that is in the group no more is waited for",
        "stream/loop.py",
        "self.broker.end_left_open(self.service.group, partitions, own) if partitions else ():",
        "():",
        (f"{LOOP}::test_what_a_member_that_is_in_the_group_no_more_has_left_open_is_ended_by_its_successor",),
    ),
    Mutant(
        "left-alone-is-fenced", "an instance that is still in the group is fenced when its partitions move",
        "stream/kafka/broker.py",
        "gone = left_behind(last, {member.group_instance_id for member in answer.members}, instance)",
        "gone = sorted(last)",
        (f"{PROMISES}::test_what_one_that_is_in_the_group_no_more_has_left_open_holds_nobody_back",),
    ),
    # The online store.
    Mutant(
        "view-before-commit", "Redis is written before the commit",
        "stream/loop.py",
        "self._send(head, consumer, producer)",
        "self.processor.committed()\n        self._send(head, consumer, producer)",
        (LOOP,),
    ),
    Mutant(
        "view-without-offset", "a view is written without its offset",
        "features/redis.py",
        'pipe.hset(place, mapping={"offset": offset, "note": note})',
        'pipe.hset(place, mapping={"note": note})',
        (VIEW,),
    ),
    Mutant(
        "view-offset-apart", "a view's offset is written on its own, before the values",
        "features/redis.py",
        "pipe.multi()\n",
        'self.client.hset(place, "offset", offset)\n                pipe.unwatch()\n                pipe.multi()\n',
        (f"{PROMISES}::test_a_view_that_could_not_be_written_keeps_its_offset",),
    ),
    Mutant(
        "view-not-watched", "a write to the store does not notice another one",
        "features/redis.py",
        "pipe.watch(place)",
        'pipe.watch(f"{place}/nothing")',
        (f"{PROMISES}::test_a_later_write_in_the_middle_of_ours_stays",),
    ),
    Mutant(
        "view-from-the-past", "a late write to Redis is not refused",
        "features/redis.py",
        "stored = _offset(answer) or 0\n                if stored > offset:",
        "stored = _offset(answer) or 0\n                if stored > 1 << 62:",
        (VIEW,),
    ),
    Mutant(
        "view-from-the-past-in-memory", "a late write to the view in memory is not refused",
        "features/memory.py",
        "stored = self.offsets.get(partition, 0)\n        if stored > offset:",
        "stored = self.offsets.get(partition, 0)\n        if stored > 1 << 62:",
        (VIEW,),
    ),
    Mutant(
        "emptied-redis-not-noticed", "a Redis that was emptied gets only what changes",
        "features/redis.py",
        'if stored < base:\n                    return "behind"',
        'if stored < 0:\n                    return "behind"',
        (VIEW,),
    ),
    Mutant(
        "emptied-store-not-filled", "the featurizer does not fill an emptied store",
        "features/views.py",
        'if outcome == "behind":',
        'if outcome == "never":',
        (f"{CRASH}::test_an_emptied_store_is_filled_again_without_a_restart_and_with_one",),
    ),
    Mutant(
        "store-ahead-believed", "a store that is ahead of what is committed is believed",
        "features/views.py",
        "if offset > committed:",
        "if offset > 1 << 62:",
        (f"{LOOP}::test_a_store_that_is_ahead_of_what_is_committed_is_not_believed",),
    ),
    # Event time: what most records say.
    Mutant(
        "one-record-moves-time", "the watermark is the highest time of any record",
        "watermark.py",
        "if time <= self._limit:\n                self.time = time",
        "self.time = time",
        (WATERMARK, AHEAD),
    ),
    Mutant(
        "few-move-time", "half of the recent records are enough to move the watermark",
        "watermark.py",
        "QUORUM_RECORDS = 24",
        "QUORUM_RECORDS = 16",
        (WATERMARK, AHEAD),
    ),
    Mutant(
        "time-crept-ahead", "each record may be ahead of the watermark, not of what most have reached",
        "watermark.py",
        "self.time = time\n\n    def _ask",
        "self.time, self._limit = time, time + self.slack\n\n    def _ask",
        (WATERMARK, AHEAD),
    ),
    Mutant(
        "saved-state-ahead", "a joiner goes on with saved state that is ahead of what is committed",
        "stages/joiner/service.py",
        "begin <= offset <= committed.offset and topic_id",
        "begin <= offset and topic_id",
        (f"{STATE}::test_state_that_is_not_that_of_what_is_committed_is_made_again", MACHINE),
    ),
    Mutant(
        "saved-state-of-another-topic", "a joiner goes on with saved state of a topic that was created again",
        "stages/joiner/service.py",
        "<= committed.offset and topic_id == metadata.topic_id:",
        "<= committed.offset:",
        (f"{STATE}::test_state_that_is_not_that_of_what_is_committed_is_made_again",),
    ),
    Mutant(
        "state-of-another-boot", "tables that the machine may not have written when it went down are used",
        "stream/lmdb_state.py",
        "if not boot.exists() or boot.read_text() != boot_id:",
        "if not boot.exists():",
        (f"{STATE}::test_state_from_before_the_machine_went_down_is_made_again",),
    ),
    Mutant(
        "state-not-dropped", "what was not saved is kept when a joiner goes back to what is committed",
        "stream/lmdb_state.py",
        "            self.txn.abort()\n        self._env.close()\n        self._lock.close()",
        "            self.txn.commit()\n        self._env.close()\n        self._lock.close()",
        (f"{STATE}::test_what_was_saved_is_there_again_and_what_was_not_is_gone", MACHINE),
    ),
    Mutant(
        "stored-reach-not-kept", "that a duplicate has come is not kept on disk, and the event is forgotten too early",
        "stages/joiner/join.py",
        "                    earlier.reach = time\n                    self._changed(earlier)",
        "                    earlier.reach = time",
        (ON_DISK,),
    ),
    Mutant(
        "stored-label-row-left", "the row of a label stays on disk when its event is forgotten",
        "stages/joiner/stored_join.py",
        "        if event.label is not None:\n            self._waiting.delete",
        "        if event.label is None:\n            self._waiting.delete",
        (ON_DISK,),
    ),
    Mutant(
        "stored-queue-head", "an entry that is earlier than the first is not seen to be",
        "stages/joiner/stored_join.py",
        "if self._first is None or key < self._first:",
        "if self._first is None:",
        (ON_DISK,),
    ),
    Mutant(
        "watermark-not-restored", "a joiner's watermark begins again at a restart",
        "stages/joiner/join.py",
        "self.labels = self._watermark(state)",
        "self.labels = self._watermark(())",
        ("tests/unit/stages/test_join_definition.py", AHEAD),
    ),
    Mutant(
        "view-watermark-not-restored", "a view's watermark begins again at a restart",
        "features/views.py",
        "self._watermark = Watermark(self._watermark.slack, watermark)",
        "self._watermark = Watermark(self._watermark.slack)",
        (AHEAD,),
    ),
    Mutant(
        "tile-ahead-drops-others", "an event far ahead drops its entity's tiles",
        "features/tiles.py",
        "self._drop(min(starts[-1], watermark // plan.every) - plan.tiles_kept)",
        "self._drop(starts[-1] - plan.tiles_kept)",
        (AHEAD,),
    ),
    Mutant(
        "any-time-ahead", "what may be ahead of the clock does not depend on what it could end",
        "declare/pipeline.py",
        "min(milliseconds(FUTURE_TOLERANCE), min(ends) // SLACK_PART)",
        "milliseconds(FUTURE_TOLERANCE)",
        ("tests/faults/test_clocks.py",),
    ),
    Mutant(
        "warning-taken-for-a-guard", "a rule that only warns of times ahead takes the guard's place",
        "declare/pipeline.py",
        " and not rule.warn]",
        "]",
        ("tests/faults/test_clocks.py",),
    ),
    # Views of other entities.
    Mutant(
        "update-counted-again", "the materializer counts updates that its store has already",
        "stages/materializer/service.py",
        "if offset >= states[index].offset:",
        "if offset >= 0:",
        (CRASH,),
    ),
    Mutant(
        "stale-view-served", "the featurizer takes a view that is not whole",
        "features/lookup.py",
        "for name, begin in self.complete_from.items() if begin > now)]",
        "for name, begin in self.complete_from.items() if begin > 1 << 62)]",
        (OTHERS,),
    ),
    Mutant(
        "metadata-before-begins", "an entity is in the commit metadata before `begins` is written",
        "wire/updates.py",
        "for entity, _, _ in self._routes if entity not in new)",
        "for entity, _, _ in self._routes)",
        (OTHERS,),
    ),
    Mutant(
        "idle-store-not-looked-at", "a store that was emptied is filled when the next record comes only",
        "stream/loop.py",
        "elif not self._dirty:\n                self.processor.committed()",
        "elif not self._dirty:\n                pass",
        (f"{CRASH}::test_a_store_that_is_emptied_while_nothing_comes_is_filled",),
    ),
    # A store that is away when a service starts.
    Mutant(
        "start-needs-its-store", "a service that gets a partition waits for its store",
        "features/views.py",
        "                self._store_is_away(plan.view.label, error, began)\n        state",
        "                raise\n        state",
        (f"{AWAY}::test_a_featurizer_that_starts_while_its_store_is_away_serves_what_it_would_have_served",),
    ),
    Mutant(
        "unread-store-as-emptied", "what a store holds that could not be read is overwritten by less",
        "features/views.py",
        "if note.shape == state.plan.shape and note.until < state.partial_until:",
        "if note.shape == state.plan.shape and note.until < 0:",
        (f"{AWAY}::test_where_the_log_was_cut_the_store_that_is_back_is_loaded_and_not_overwritten",),
    ),
    Mutant(
        "unread-store-is-never-behind", "nobody is told that a store was not read",
        "features/views.py",
        'float(is_unread or name in self._behind)',
        'float(name in self._behind and not is_unread)',
        (f"{AWAY}::test_a_featurizer_that_starts_while_its_store_is_away_serves_what_it_would_have_served",),
    ),
    Mutant(
        "wrong-address-accepted", "a service starts the first time with an address that was never reached",
        "runtime/run.py",
        "            raise\n        log.error(\"started without",
        "            pass\n        log.error(\"started without",
        (START,),
    ),
    # The materializer.
    Mutant(
        "begins-is-not-heard", "a view that was declared later is taken for one that has always been there",
        "stages/materializer/service.py",
        "            state.begins(time)\n",
        "            pass\n",
        (OTHERS,),
    ),
    Mutant(
        "entities-stay-in-the-store", "an entity that has expired stays in the store",
        "features/views.py",
        "            self._forgotten.add(name)",
        "            pass",
        (OTHERS, AWAY),
    ),
    # The gate.
    Mutant(
        "decision-taken-twice", "a decision that stands in the log already is written again after a crash",
        "stages/gate/service.py",
        "if emit is discard or is_repeated:",
        "if emit is discard:",
        (f"{GATE}::TestRestarts::test_a_crash_before_or_after_any_decision_or_commit_changes_no_decision",),
    ),
    Mutant(
        "evidence-not-rebuilt", "a gate that takes over begins its evidence at the committed offset",
        "stages/gate/service.py",
        "return Start(self.next, max(committed.offset, self.next))",
        "return Start(max(committed.offset, self.next), max(committed.offset, self.next))",
        (f"{GATE}::TestRestarts::test_a_crash_before_or_after_any_decision_or_commit_changes_no_decision",),
    ),
    Mutant(
        "command-carried-out-twice", "a command that is read again is carried out again",
        "stages/gate/service.py",
        "if any(decision.command == command.id for decision in self.standing.decisions):",
        "if any(decision.command == command for decision in self.standing.decisions):",
        (GATE,),
    ),
    Mutant(
        "decided-in-a-rebuild", "a gate that reads examples again to rebuild its evidence decides by them",
        "stages/gate/service.py",
        "if emit is discard or is_repeated:",
        "if is_repeated:",
        (f"{GATE}::TestARebuild",),
    ),
    Mutant(
        "decisions-without-a-head", "a gate that starts begins the chain of decisions again",
        "stages/gate/service.py",
        "            self._chain.heads[GATE] = self._chain.codec.head(decision)\n",
        "",
        (f"{GATE}::TestARebuild",),
    ),
    # What an artifact may be.
    Mutant(
        "state-set-twice", "an object in a snapshot is given a second state, by what the first has put in the way",
        "registry/pickles.py",
        "self.__class__ = filled",
        "self.__class__ = type(self)",
        (HOSTILE,),
    ),
    Mutant(
        "always-quick", "a state's taker may be in a snapshot whose stand-ins look at dicts alone",
        "registry/parts.py",
        'self._trials[b"__setstate__" in data]',
        'self._trials[False]',
        (HOSTILE,),
    ),
    Mutant(
        "class-is-a-slot", "the class of an object with slots may be set as one of them",
        "registry/pickles.py",
        '{"__class__": property()} if slots',
        '{} if slots',
        (HOSTILE,),
    ),
    Mutant(
        "any-state-is-taken", "a state that is no dict is set on an object",
        "registry/pickles.py",
        'staticmethod(dict.keys)',
        'staticmethod(id)',
        (HOSTILE,),
    ),
    Mutant(
        "slots-not-looked-at", "a slot of a snapshot's object may be a property, whose function is called",
        "registry/pickles.py",
        "for given, refused in ((names, cls.refused), (slots, cls.refused_slots)):",
        "for given, refused in ((names, cls.refused),):",
        (HOSTILE,),
    ),
    Mutant(
        "any-text-in-errors", "an error quotes megabytes of what a stranger wrote, in as many lines as he likes",
        "errors.py",
        "super().__init__(in_one_line(message))",
        "super().__init__(message)",
        (HOSTILE,),
    ),
    Mutant(
        "any-progress-is-believed", "a record of somebody else's on the progress topic has a service pass over records",
        "stream/restore.py",
        "if metadata is None or not metadata.last:",
        "if metadata is None:",
        (LOST,),
    ),
    # Retention.
    Mutant(
        "retention-forgets-names", "an artifact that a decision names is pruned",
        "registry/retention.py",
        "is_named = (one.model, one.newness[1]) in kept",
        "is_named = one.newness in kept",
        ("tests/unit/registry/test_retention.py",),
    ),
    Mutant(
        "retention-by-forged-manifests", "a forged manifest decides what is pruned",
        "registry/retention.py",
        "if listed.manifest and not listed.refused:",
        "if listed.manifest:",
        ("tests/unit/registry/test_retention.py",),
    ),
    Mutant(
        "shared-artifact-pruned", "an artifact is pruned that a kept version shares",
        "registry/retention.py",
        "if one.digest not in digests:",
        "if one.digest:",
        ("tests/unit/registry/test_retention.py",),
    ),
    Mutant(
        "pruned-without-an-intact-one", "old artifacts are pruned although the newest is lost",
        "registry/retention.py",
        "if not self.registry.is_intact(self._newest[model]):",
        "if not self._newest[model]:",
        ("tests/unit/registry/test_retention.py",),
    ),
    # Signed records.
    Mutant(
        "notices-of-old-records", "a notifier that starts tells of an old record that is appended again",
        "watch/notifier/service.py",
        "        self.notices.restore(topic_partition.topic, self.past, first)\n",
        "",
        ("tests/unit/watch/test_notifier.py",),
    ),
    Mutant(
        "unknown-chain-is-new", "a record of a chain from before all that is read again is taken for a new chain's",
        "registry/signing.py",
        "elif 0 <= signature.position < self._known_from:",
        "elif signature.position < -1:",
        ("tests/unit/watch/test_notifier.py",),
    ),
    Mutant(
        "sequence-not-checked", "signed bytes that are appended again are obeyed",
        "registry/signing.py",
        "if signature.sequence <= head.sequence:",
        "if signature.sequence < 0:",
        (SIGNING,),
    ),
    Mutant(
        "newest-is-at-the-end", "a start stops at the first records of a chain, be they old ones that were appended again",
        "registry/signing.py",
        " and end <= _first_after(chains, newest):",
        ":",
        ("tests/unit/registry/test_old_at_the_end.py",),
    ),
    Mutant(
        "gap-for-ever", "after a gap a reader goes on with nothing until it is started again",
        "registry/signing.py",
        "if signature.previous != self._after_gap.get(signature.chain):",
        "if signature.previous:",
        ("tests/unit/registry/test_old_at_the_end.py",),
    ),
    Mutant(
        "gap-not-checked", "a record is obeyed although those before it are missing",
        "registry/signing.py",
        "if signature.sequence > head.sequence + 1:",
        "if signature.sequence < 0:",
        (SIGNING,),
    ),
    Mutant(
        "fork-not-checked", "a record is obeyed that does not follow from the one before",
        "registry/signing.py",
        "if signature.previous != head.sha256:",
        "if not signature.sequence:",
        (SIGNING,),
    ),
    Mutant(
        "place-not-checked", "a record of another pipeline or topic is obeyed",
        "registry/signing.py",
        "if getattr(signature, name) != value:",
        "if not getattr(signature, name):",
        (SIGNING,),
    ),
    Mutant(
        "kind-not-checked", "a record of another kind is obeyed",
        "registry/signing.py",
        "if signature.kind not in self.kinds:",
        "if not signature.kind:",
        (SIGNING,),
    ),
    Mutant(
        "newest-by-place", "who starts takes the record that lies last for the newest",
        "registry/signing.py",
        "key=lambda one: (-one.signature.sequence, one.record.offset())",
        "key=lambda one: -one.record.offset()",
        (SIGNING,),
    ),
    Mutant(
        "key-never-ends", "a key is believed after its date",
        "keys.py",
        "if known.is_over(self.clock()):",
        "if known.is_over(0.0):",
        (SIGNING,),
    ),
    Mutant(
        "any-key-signs-anything", "the learner's key may sign commands",
        "keys.py",
        "if known.kinds and kind not in known.kinds:",
        "if not known:",
        (SIGNING,),
    ),
    Mutant(
        "aborted-records-count", "what was not committed has its place in the chain",
        "registry/signing.py",
        "    chains.forget(wanted)\n",
        "",
        (SIGNING,),
    ),
    # The model's version.
    Mutant(
        "snapshot-without-offset", "the learner goes on at the group's offset, not at its snapshot's",
        "stages/learner/service.py",
        "return Start(self.training.at, max(self.training.target, log_range[0]))",
        "return Start(committed.offset, committed.offset)",
        (f"{REGISTRY}::test_a_learner_resumed_anywhere_ends_like_one_never_stopped",),
    ),
    Mutant(
        "version-is-a-count", "a model's version is not an offset",
        "models/fold.py",
        "self.version = offset + 1\n        self.examples += 1",
        "self.examples += 1\n        self.version = self.examples",
        (f"{REGISTRY}::test_a_learner_resumed_anywhere_ends_like_one_never_stopped",),
    ),
    Mutant(
        "snapshot-forgotten", "the learner starts at its snapshot's offset with a model that has learned nothing",
        "models/fold.py",
        "self.model, self.scorecard = snapshot.model, Scorecard(snapshot.metrics, declared=self.pipeline.metric())",
        "self.scorecard = Scorecard(snapshot.metrics, declared=self.pipeline.metric())",
        (f"{REGISTRY}::test_a_learner_resumed_anywhere_ends_like_one_never_stopped",),
    ),
    # The fast form of a linear model is River's, to the last digit.
    Mutant(
        "categories-in-another-order", "categories are added up in the vector's order, not in the encoder's",
        "models/linear.py",
        "        present.sort(key=_place)\n",
        "",
        (LINEAR,),
    ),
    Mutant(
        "zeros-never-count", "a category that a vector does not have is left out although its weight may be infinite",
        "models/linear.py",
        "if not self._has_zeros and not abs(rate * gradient) < MAX_STEP:",
        "if False:",
        (LINEAR,),
    ),
    Mutant(
        "deviation-by-root", "a deviation is the square root, which differs from River's power in the last digit",
        "models/linear.py",
        "one.std = one.var**0.5",
        "one.std = __import__('math').sqrt(one.var)",
        (LINEAR,),
    ),
    Mutant(
        "saved-without-what-was-learned", "River's model is saved as it was before the last examples",
        "models/linear.py",
        "        if self._is_behind:\n",
        "        if False:\n",
        (LINEAR,),
    ),
    Mutant(
        "metrics-saved-without-their-counts", "a version's metrics lack the predictions since somebody asked for them",
        "declare/counted_metrics.py",
        "for (label, outcome), count in self._counts.items():",
        "for (label, outcome), count in ():",
        ("tests/unit/declare/test_counted_metrics.py",),
    ),
    Mutant(
        "a-vector-handed-on-in-another-order", "a backtest's models get features in the order in which they were made",
        "wire/records.py",
        "vector = {name: given[name] for name in types}",
        "vector = dict(given)",
        ("tests/unit/offline/test_backtest_by_reference.py",),
    ),
    # Versions never go back.
    Mutant(
        "older-version-published", "a learner that can't open the newest version publishes older ones again",
        "stages/learner/training_run.py",
        "self.target = max(self.at, min(max(newest, committed), end))",
        "self.target = self.at",
        (BACK,),
    ),
    Mutant(
        "other-fold-published", "a version that was folded again is not compared with its manifest",
        "stages/learner/training_run.py",
        "self.registry.compare(lost, snapshot)[1]",
        '""',
        (BACK,),
    ),
    Mutant(
        "last-manifest-counts", "a scorer follows the last manifest, not the newest version",
        "stages/scorer/feed.py",
        "if manifest.newness > max(self._newest_known(manifest.model), _newness(newest.get(manifest.model))):",
        "if True:",
        (BACK,),
    ),
    Mutant(
        "unlearned-instead", "a scorer that can't open any version serves the declared model",
        "stages/scorer/service.py",
        "slot.why_not = unopened.why",
        "pass",
        (BACK,),
    ),
    Mutant(
        "served-is-forgotten", "a scorer that starts does not look at what has served",
        "stages/scorer/feed.py",
        "self._newest_seen[model] = (served[0], served[1] - 1)",
        "pass",
        (BACK,),
    ),
    Mutant(
        "unverified-is-nothing", "manifests of another key count as no manifests",
        "stages/learner/service.py",
        'why = "" if manifests else why_none(broker, registry, model)',
        'why = ""',
        (BACK,),
    ),
    # What an artifact may be.
    Mutant(
        "artifact-not-tried", "a snapshot is read at once",
        "registry/snapshots.py",
        '        made = pickles.tried(trial, len(data))\n',
        '        made = []\n',
        (f"{HOSTILE}::test_no_hostile_snapshot_is_opened_and_nothing_is_done",),
    ),
    Mutant(
        "made-by-another", "a snapshot is given what the trial of one inside it has made",
        "registry/pickles.py",
        "        _load.replay = before  # type: ignore[assignment]\n",
        "        pass\n",
        ("tests/unit/registry/test_opening.py",),
    ),
    Mutant(
        "made-by-another-thread", "threads that open snapshots take what each other's calls have made",
        "registry/pickles.py",
        "class _Load(threading.local):",
        "class _Load:",
        ("tests/unit/registry/test_opening.py",),
    ),
    Mutant(
        "opcodes-not-walked", "any opcode is read",
        "registry/snapshots.py",
        '    pickles.check_opcodes(data)\n',
        '',
        (f"{HOSTILE}::test_no_hostile_snapshot_is_opened_and_nothing_is_done",),
    ),
    Mutant(
        "class-can-be-changed", "a state may be set on a class",
        "registry/pickles.py",
        'raise ArtifactError(f"a snapshot may not set a state on the class {cls.__name__}")',
        'return id',
        (f"{HOSTILE}::test_no_hostile_snapshot_is_opened_and_nothing_is_done",),
    ),
    Mutant(
        "class-can-be-called", "a class may be called",
        "registry/pickles.py",
        'raise ArtifactError(f"a snapshot may not call {cls.__name__}")',
        'return object.__new__(cls)',
        (f"{HOSTILE}::test_no_hostile_snapshot_is_opened_and_nothing_is_done",),
    ),
    Mutant(
        "any-attribute", "a method may be any attribute",
        "registry/values.py",
        'in river_parts.METHODS:\n',
        'in river_parts.METHODS or name:\n',
        (f"{HOSTILE}::test_no_hostile_snapshot_is_opened_and_nothing_is_done",),
    ),
    Mutant(
        "random-state-anywhere", "a random state may stand beyond its numbers",
        "registry/values.py",
        'or not 0 <= position <= _MT19937_WORDS or has_gauss not in (0, 1):',
        'or has_gauss not in (0, 1):',
        (f"{HOSTILE}::test_no_hostile_snapshot_is_opened_and_nothing_is_done",),
    ),
    Mutant(
        "all-of-river", "a declared model's snapshot may consist of all of River",
        "registry/parts.py",
        '        classes |= {(module, name) for name in _CLASSES.get(module, ())}\n',
        '        classes |= set(_names(_CLASSES))\n',
        (f"{HOSTILE}::test_another_model_is_refused_in_the_place_of_the_declared_one",),
    ),
    Mutant(
        "what-a-model-makes-refused", "only what an untaught model has is allowed",
        "registry/parts.py",
        '        waiting |= _neighbours(module) - reached\n',
        '',
        ("tests/unit/registry/test_snapshot_sweep.py::test_what_was_taught_is_opened_and_answers_as_before",),
    ),
    # Bounded work for what comes from outside.
    Mutant(
        "patterns-without-bound", "rules.matches is Python's re again",
        "rules/matches.py",
        'names={"fullmatch": _compiled(field, pattern).Match},',
        'names={"fullmatch": re.compile(pattern).fullmatch},',
        ("tests/unit/rules/test_patterns.py::test_check_refuses_a_pattern_that_re2_does_not_take_with_the_reason_and_what_to_do",),
    ),
    Mutant(
        "memory-of-messages-not-bounded", "a message is decoded whatever its schema makes of a byte",
        "encoding/schema_limits.py",
        "max(worst.avro, memory // (least.bytes + item.bytes))",
        "worst.avro",
        ("tests/unit/test_limits.py::test_one_more_is_refused_by_name_value_and_limit",),
    ),
    Mutant(
        "entities-of-any-length", "only the id of an event has the length of a key",
        "stages/validator/rule_check.py",
        "ids = {stream.id, stream.key, *entities}",
        "ids = {stream.id}",
        ("tests/unit/test_limits.py::test_the_entity_of_a_view_is_held_to_the_limit_of_an_id",),
    ),
    Mutant(
        "dead-letters-not-cut", "a record that no topic takes is sent as it is, again and again",
        "wire/dead_letters.py",
        "if size > max_bytes:",
        "if not size:",
        ("tests/unit/test_limits.py::test_one_more_is_refused_by_name_value_and_limit",),
    ),
    Mutant(
        "part-of-a-record-redriven", "a dead letter that was cut is sent back as if it were all of its record",
        "offline/redrive.py",
        "elif letter.cut_from is not None:",
        "elif letter.cut_from == 0:",
        ("tests/unit/offline/test_redrive_once.py::TestThereAndBack::test_a_letter_that_was_cut_does_not_go_back",),
    ),
    Mutant(
        "probes-without-time", "a connection to the probes may take for ever",
        "probes.py",
        "for request in [request for request, since in self._open.items() if since < latest]:",
        "for request in ():",
        ("tests/unit/test_probes.py::test_a_connection_is_closed_after_its_time_however_little_it_sends",),
    ),
    Mutant(
        "look-ups-without-askers", "a look-up goes on after its asker has gone",
        "watch/status/parts.py",
        "        if not searching.done():\n            gone.set()\n",
        "",
        ("tests/unit/watch/test_status_connections.py::test_a_look_up_ends_when_its_asker_has_gone_and_makes_room",),
    ),
    Mutant(
        "gateway-sends-again", "the gateway sends an id that came before again",
        "gateway/asking.py",
        "if known is None or (letter is not None and not is_repeat(letter, self.pipeline)):",
        "if True:",
        ("tests/unit/gateway/test_gateway_predict.py::test_the_same_id_again_has_the_first_answer_and_no_second_prediction",),
    ),
    Mutant(
        "gateway-another-event", "the gateway answers another event of the same id with the first one's prediction",
        "gateway/asking.py",
        "if known.digest and known.digest != event.digest:",
        "if False:",
        ("tests/unit/gateway/test_gateway_predict.py::test_the_same_id_with_other_values_is_a_conflict",),
    ),
    Mutant(
        "gateway-starts-empty", "a gateway that starts does not read which ids were sent",
        "gateway/river.py",
        "                self._call(self.take, batch)\n",
        "                pass\n",
        ("tests/unit/gateway/test_gateway_predict.py::test_a_gateway_that_starts_again_knows_what_was_sent_and_predicted",),
    ),
    Mutant(
        "gateway-cuts-off", "a gateway that ends leaves those without an answer who wait for longer than it may take",
        "gateway/asking.py",
        "        self.river.end_waits(seconds)\n",
        "",
        ("tests/unit/gateway/test_gateway_connections.py::test_who_would_wait_longer_than_it_may_take_to_end_is_answered_with_what_is_known",),
    ),
    Mutant(
        "table-commits-again", "a commit of an Iceberg table that comes second is made on top of the first one",
        "watch/archiver/iceberg.py",
        '_ONE_TRY = {"commit.retry.num-retries": "0"}',
        '_ONE_TRY = {"commit.retry.num-retries": "4"}',
        ("tests/unit/watch/test_table_archives.py::test_of_two_that_write_at_the_same_moment_the_table_takes_one",),
    ),
    Mutant(
        "gateway-any-role", "who may only read may send",
        "tokens.py",
        "return bool(self.role & needed) if isinstance(needed, Permission) else self.role >= needed",
        "return isinstance(needed, Permission) or self.role >= needed",
        ("tests/unit/gateway/test_gateway_predict.py::test_no_answer_without_a_key_and_no_role_beyond_its_own",),
    ),
    # What files and producers give.
    Mutant(
        "time-as-it-is-sent", "a time in microseconds goes on as milliseconds",
        "stages/validator/decode.py",
        "record[self._time] = self._as_millis(value)",
        "self._as_millis(value)",
        ("tests/unit/stages/test_units_of_time.py::test_the_time_goes_on_in_milliseconds_whatever_it_is_sent_in",),
    ),
    Mutant(
        "units-read-as-one", "a producer's schema with the time in another unit is read as the declared one",
        "stages/validator/writer_schemas.py",
        "if unit := other_unit(avro, codec.avro, codec.units):",
        "if False and (unit := other_unit(avro, codec.avro, codec.units)):",
        ("tests/unit/stages/test_units_of_time.py::test_a_writer_with_another_unit_is_refused_and_not_read_as_the_declared_one",),
    ),
    Mutant(
        "seconds-pass", "seconds that are taken as milliseconds are events of January 1970",
        "declare/pipeline.py",
        "if stream.is_time_plain:",
        "if False:",
        ("tests/unit/stages/test_units_of_time.py::test_a_time_that_is_none_is_a_dead_letter",),
    ),
    Mutant(
        "nobody-is-an-entity", "all events without a user share one history",
        "stages/featurizer/service.py",
        "if request.is_nobody:",
        "if False:",
        ("tests/unit/stages/test_empty_entities.py::test_an_empty_text_is_no_entity",),
    ),
    Mutant(
        "floats-are-integers", "an integer of a column of floats is taken though it may be another",
        "offline/history.py",
        "if isinstance(exact, float) and abs(exact) > MAX_EXACT_FLOAT:",
        "if False:",
        ("tests/unit/offline/test_files_of_any_kind.py::test_what_parquet_has_and_the_schema_has_not_is_named",),
    ),
    Mutant(
        "joined-forgotten-early", "what may be corrected is forgotten after the timeout",
        "watermark.py",
        "return 2 * timeout + corrections if corrections else timeout",
        "return timeout",
        (JOIN,),
    ),
    Mutant(
        "corrected-too-late", "a label corrects for ever, as long as its event is remembered",
        "stages/joiner/join.py",
        "return is_prediction_in_time and label.watermark <= first.time + self.corrections",
        "return is_prediction_in_time",
        (JOIN,),
    ),
    Mutant(
        "current-label-forgotten", "after a correction the first label is still taken for the event's",
        "stages/joiner/join.py",
        "                event.current = label.value\n",
        "",
        (JOIN,),
    ),
    Mutant(
        "current-label-not-stored", "on disk an event's correction is forgotten",
        "stages/joiner/stored_join.py",
        "label_offset, label_time, value, event.current = row.label",
        "label_offset, label_time, value, _ = row.label",
        (MACHINE,),
    ),
    Mutant(
        "corrections-of-later", "a corrected candidate learns corrections that came after it was asked for",
        "models/corrections.py",
        "if record.offset() < self.before:",
        "if True:",
        (f"{CORRECTED}::test_a_command_folds_the_corrected_log_and_goes_on_with_what_comes", CORRECTED),
    ),
    Mutant(
        "gathered-to-the-model", "a corrected candidate begins to learn before it has read all corrections",
        "stages/learner/training_run.py",
        "return self.gathered_until < self.corrections.before",
        "return self.gathered_until < 1",
        (CORRECTED,),
    ),
    Mutant(
        "share-of-corrections-counted-again", "a gate that starts again counts corrections from nothing",
        "stages/gate/service.py",
        "kept = CommitMetadata.decode(committed.metadata).corrections or (committed.offset, 0)",
        "kept = (committed.offset, 0)",
        (CORRECTED,),
    ),
    Mutant(
        "first-labels-judge", "a backtest's figures are by first labels",
        "offline/backtest.py",
        "fold.judge(last)",
        "fold.judge(example)",
        ("tests/unit/offline/test_corrected_labels.py",),
    ),
)  # fmt: skip


@dataclass
class Outcome:
    """What the tests said about one mutant."""

    name: str
    says: str
    caught_by: str
    why: str
    seconds: float


@contextmanager
def copied(source: Path) -> Iterator[Path]:
    """Yield a copy of what the tests need, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="tidemill-mutant-") as folder:
        copy = Path(folder)
        for name in ("services", "schemas", "tests", "docs"):
            shutil.copytree(source / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.log"))
        shutil.copy2(source / "pyproject.toml", copy)
        yield copy


def environment(copy: Path) -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": str(copy / "services"), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400",
        "TIDEMILL_TEST_JARS": str(JARS), "TIDEMILL_REQUIRE_KAFKA": "1",
    }  # fmt: skip


def check_import(copy: Path) -> None:
    """Make sure that the copy is what is tested, also in processes that the tests start."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import tidemill; print(tidemill.__file__)'])"
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment(copy), cwd=copy, capture_output=True, text=True, check=True
    )
    if not found.stdout.startswith(f"{copy}{os.sep}"):
        raise SystemExit(f"the tests would import {found.stdout.strip()}, not the copy in {copy}")


def whole_order(copy: Path) -> list[str]:
    """Return the files of the whole order that are there."""
    found: list[str] = []
    for name in WHOLE:
        path = copy / name
        found += sorted(str(p.relative_to(copy)) for p in path.glob("test_*.py")) if path.is_dir() else [name]
    return [name for name in found if (copy / name).is_file()]


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[str, str]:
    """Run the tests until one fails; returns its id and the first line of why, or two empty texts where all pass.

    Raises RuntimeError where the tests could not be run: then nothing is known.
    """
    log = copy / "pytest.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-x", "-v", "-rfE", "-p", "no:cacheprovider", f"--timeout={LONGEST_TEST}",
             "--tb=line", *tests],
            cwd=copy, env=environment(copy), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(LONGEST_RUN)
        except subprocess.TimeoutExpired:
            code = None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text(errors="replace")
    if code == 0:
        return "", ""
    failed = re.search(r"^FAILED (.+?)(?: - (.*))?$", text, re.MULTILINE)  # a parameter's name may have spaces
    if failed:
        return failed[1], (failed[2] or "").strip()
    started = re.findall(r"^(tests/\S+::\S+)", text, re.MULTILINE)
    if started and (code is None or "+ Timeout +" in text):
        return started[-1], "it does not end"
    raise RuntimeError(f"pytest ended with code {code}:\n" + "\n".join(text.splitlines()[-30:]))


class Check:
    """Runs mutants of one state of the project; remembers which tests are green without one."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.green: set[str] = set()

    def require_green(self, tests: Sequence[str]) -> None:
        """Run those of the tests on an unchanged copy that have not been yet. Ends everything where one fails."""
        left = [test for test in dict.fromkeys(tests) if test not in self.green]
        if not left:
            return
        started = time.monotonic()
        with copied(self.source) as copy:
            check_import(copy)
            failed, why = run_tests(copy, left)
        if failed:
            raise SystemExit(f"red without any mutant: {failed}: {why}")
        self.green.update(left)
        say(f"{'(unchanged)':31} green: {len(left)} files and tests ({time.monotonic() - started:.0f} s)")

    def run(self, mutant: Mutant) -> Outcome:
        """Return what the tests say."""
        started = time.monotonic()
        with copied(self.source) as copy:
            path = copy / PACKAGE / mutant.file
            path.write_text(mutant.apply(path.read_text()))
            check_import(copy)
            failed, why = run_tests(copy, mutant.likely)
            if not failed:
                rest = whole_order(copy)
                self.require_green(rest)
                failed, why = run_tests(copy, rest)
        return Outcome(mutant.name, mutant.says, failed or "MISSED", why, round(time.monotonic() - started, 1))


def say(text: str) -> None:
    print(text, flush=True)


def run_all(chosen: Sequence[Mutant], source: Path, report: Path | None) -> list[Outcome]:
    try:
        for mutant in chosen:
            mutant.apply((source / PACKAGE / mutant.file).read_text())
    except Drift as error:
        raise SystemExit(str(error)) from None
    check = Check(source)
    check.require_green([test for mutant in chosen for test in mutant.likely])
    outcomes = []
    for mutant in chosen:
        outcome = check.run(mutant)
        outcomes.append(outcome)
        say(f"{outcome.name:31} {outcome.seconds:5.0f} s  {outcome.caught_by}  {outcome.why[:160]}")
        if report:
            report.write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if any(word in mutant.name for word in asked.only)]
    if not chosen:
        parser.error("no mutant has such a name; --list shows them")
    if asked.list:
        for mutant in chosen:
            say(f"{mutant.name:31} {mutant.file:22} {mutant.says}")
        return
    with copied(ROOT) as source:  # what is edited meanwhile changes nothing
        outcomes = run_all(chosen, source, asked.json)
    missed = [outcome.name for outcome in outcomes if outcome.caught_by == "MISSED"]
    say(
        f"{len(outcomes) - len(missed)} of {len(outcomes)} mutants caught"
        + (f"; MISSED: {', '.join(missed)}" if missed else "")
    )
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
