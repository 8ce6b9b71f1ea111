"""A job's figures for Prometheus, reckoned from its files each time they are asked for: the page can be ended and started."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ninthsky.guard.faults import Fault
from ninthsky.guard.page.acts import Acts
from ninthsky.guard.page.cost import step_seconds
from ninthsky.guard.page.folder import JobFolder
from ninthsky.guard.picture import WORDS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGES = ("gather", "recover", "collect", "wait", "form", "run", "done", "failed")
BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)  # seconds


def metrics_text(job: JobFolder, acts: Acts) -> bytes:
    """All figures in Prometheus' text form, 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(JobCollector(job, acts))
    return generate_latest(registry)


class JobCollector(Collector):
    """Everything is labelled with the job's name."""

    def __init__(self, job: JobFolder, acts: Acts) -> None:
        self._job, self._acts = job, acts

    def collect(self) -> Iterator[Metric]:
        job, faults = self._job, list(self._job.faults.values())
        yield from self._of_faults(faults)
        yield from self._of_picture()
        refused: Counter[str] = Counter()
        for counts in job.refused.values():
            refused.update(counts)
        family = CounterMetricFamily("ninthsky_refused_messages", "Peers and frames turned away.", labels=["job", "reason"])
        for reason, count in sorted(refused.items()):
            family.add_metric([job.spec.run_id, reason], count)
        yield family
        yield self._gauge("step_seconds", "Median of the newest 64 steps.", step_seconds(job.steps))
        goodput = job.goodput(time.time())
        if goodput is not None:
            yield self._gauge(
                "goodput_ratio", "Steps kept times a step's median time, of all time since the job began.", goodput
            )

    def _of_faults(self, faults: Sequence[Fault]) -> Iterator[Metric]:
        name = self._job.spec.run_id
        by_kind = Counter((fault.cause, str(fault.injected).lower()) for fault in faults)
        family = CounterMetricFamily("ninthsky_faults", "Faults that were named.", labels=["job", "cause", "injected"])
        for labels, count in sorted(by_kind.items()):
            family.add_metric([name, *labels], count)
        yield family
        opened = GaugeMetricFamily("ninthsky_open_faults", "Faults that are not repaired yet.", labels=["job", "state"])
        for state in ("open", "advised", "stopped"):
            opened.add_metric([name, state], sum(fault.state == state for fault in faults))
        yield opened
        marks = (("time_to_name_seconds", "named"), ("time_to_training_seconds", "trained"))
        for title, mark in marks:
            yield self._histogram(title, f"From a fault's beginning until {mark}.", [fault.seconds(mark) for fault in faults])
        yield self._counter("steps_redone", "Steps done again because of faults.", sum(f.steps_redone for f in faults))
        lost = sum(fault.committed_steps_lost for fault in faults)
        yield self._counter("committed_steps_lost", "Committed steps that faults cost.", lost)
        false = sum(self._acts.is_false_alarm(fault) for fault in faults)
        # A gauge: a person may take it back.
        yield self._gauge("false_alarms", "Faults of which a person said that they were none.", false)

    def _of_picture(self) -> Iterator[Metric]:
        picture, name = self._job.picture, self._job.spec.run_id
        stage = GaugeMetricFamily("ninthsky_job_stage", "1 for the stage that the job is in.", labels=["job", "stage"])
        now = picture.head.stage if picture is not None else ""
        for known in STAGES:
            stage.add_metric([name, known], known == now)
        yield stage
        if picture is None:
            return
        head = picture.head
        yield self._gauge("controller_seen_timestamp_seconds", "When the controller last wrote its picture.", head.time)
        yield self._gauge("step", "Newest step that any rank is in.", head.step)
        yield self._gauge("committed_step", "Newest step that all finished and whose state is held twice.", head.committed)
        yield self._gauge("generation", "Number of times that the groups were formed.", head.generation)
        yield self._counter("evictions", "Cards that were replaced.", head.evictions)
        yield self._counter("calls_lost", "Calls to people and drains that could not be made.", head.calls_lost)
        cards = GaugeMetricFamily("ninthsky_cards", "Card slots by state.", labels=["job", "state"])
        counts = np.bincount(picture.cards, minlength=len(WORDS))
        for card, word in WORDS.items():
            cards.add_metric([name, word.replace(" ", "_")], int(counts[card]))
        yield cards

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"ninthsky_{name}", text, labels=["job"])
        family.add_metric([self._job.spec.run_id], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"ninthsky_{name}", text, labels=["job"])
        family.add_metric([self._job.spec.run_id], value)
        return family

    def _histogram(self, name: str, text: str, values: Sequence[float | None]) -> Metric:
        known = [value for value in values if value is not None]
        buckets = [(str(limit), float(sum(value <= limit for value in known))) for limit in BUCKETS]
        family = HistogramMetricFamily(f"ninthsky_{name}", text, labels=["job"])
        family.add_metric([self._job.spec.run_id], [*buckets, ("+Inf", float(len(known)))], sum(known))
        return family
