"""Time of a training step of every method, in every setting."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import torchrun
from benchmarks.common import BenchmarkError
from benchmarks.communication import over_link
from benchmarks.communication.network import Here, Host, some_hosts
from benchmarks.cuts import balanced_cut
from benchmarks.time_to_accuracy.work import Method, Setting, Work
from pipelocal.config.resolve import blueprint_of
from pipelocal.system.strict_json import to_json

PEER = str(Path(__file__).parents[1] / "throughput" / "peer.py")
LOG_EVERY = 8
"""Batches in a record of metrics.jsonl: whole cycles of ``--reconcile-every``."""
OWN_STEPS, PEER_STEPS = 48, 12
"""Training steps of a measurement; the peers' median needs fewer than a median of records."""

Seconds = dict[str, dict[str, list[float]]]
"""By setting and method, one in each round."""


class Cuts:
    """Where the model is cut, as ``--balance time`` does: for pipelocal with its heads, for others without.

    Args:
        work: what is trained.
        kept: cuts that are known already, which others are added to.
    """

    def __init__(self, work: Work, kept: dict[str, str]) -> None:
        self._work, self._kept = work, kept

    def own(self, stages: int) -> str:
        """Of pipelocal."""
        return self._cut(stages, self._work.objective, self._work.head)

    def peers(self, stages: int) -> str:
        """Of the schedules: behind heads that cost next to nothing."""
        return self._cut(stages, "greedy", "linear")

    def _cut(self, stages: int, objective: str, head: str) -> str:
        name = f"{stages} stages, {objective}, {head}"
        if name not in self._kept:
            config = self._work.config(
                stages=stages,
                batch_size=self._work.batch_size,
                objective=objective,
                head=head,
            )
            self._kept[name] = balanced_cut(config)
        return self._kept[name]


class Measured:
    """Measurements so far, in a file if they are to be kept.

    Args:
        work: what is trained.
        keep: folder to keep them in.

    Raises:
        BenchmarkError: there are some, but of other work.
    """

    def __init__(self, work: Work, keep: Path) -> None:
        self._file = keep / "steps.json"
        self._work = {k: v for k, v in asdict(work).items() if k not in UNTIMED}
        self._cuts: dict[str, str] = {}
        self.seconds: Seconds = {}
        if self._file.exists():
            kept = json.loads(self._file.read_text())
            if kept["work"] != json.loads(to_json(self._work)):
                raise BenchmarkError(
                    f"--keep {keep} holds steps of other options: give another folder"
                )
            self._cuts, self.seconds = kept["cuts"], kept["seconds"]
        self.cuts = Cuts(work, self._cuts)

    def of(self, setting: Setting, method: Method) -> list[float]:
        """Seconds of a step in each round."""
        return self.seconds.setdefault(setting.name, {}).setdefault(method.name, [])

    def median(self, setting: Setting, method: Method) -> float:
        """Seconds of a step."""
        return statistics.median(self.of(setting, method))

    def keep(self) -> None:
        """Write them."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        content = {"work": self._work, "cuts": self._cuts, "seconds": self.seconds}
        part.write_text(to_json(content, indent=1))
        part.rename(self._file)


UNTIMED = ("data_root", "passes", "search_passes", "rates", "seed")
"""What a step's time does not depend on."""


def measure(
    work: Work, settings: Sequence[tuple[Setting, list[Method]]], rounds: int, measured: Measured
) -> Iterator[str]:
    """Lines of progress; the seconds are put into ``measured``.

    In the first round every method has its turn; in the others the fastest form of each.
    """
    for round_ in range(rounds):
        for setting, methods in settings:
            chosen = methods if round_ == 0 else fastest_forms(setting, methods, measured)
            for method in chosen:
                seconds = measured.of(setting, method)
                if len(seconds) > round_:
                    continue
                seconds.append(_seconds(work, setting, method, measured.cuts))
                measured.keep()
                yield f"round {round_ + 1}, {setting.name}: {method.name}"


def fastest_forms(setting: Setting, methods: Sequence[Method], measured: Measured) -> list[Method]:
    """The methods, each only with what was fastest in the first round: micro-batches, window, messages."""
    best: dict[tuple[str, str], Method] = {}
    for method in methods:
        key = (method.kind, method.wire)
        first = measured.of(setting, method)[0]
        if key not in best or first < measured.of(setting, best[key])[0]:
            best[key] = method
    return list(best.values())


def _seconds(work: Work, setting: Setting, method: Method, cuts: Cuts) -> float:
    pinned = setting.ranks <= len(os.sched_getaffinity(0))
    with _hosts(setting) as hosts:
        if method.kind == "pipelocal":
            config = work.own(
                cuts.own(setting.ranks),
                method.wire,
                tested=False,
                window=method.window,
                epochs=1000,
                max_steps=OWN_STEPS,
                log_every=LOG_EVERY,
            )
            _, metrics = over_link.train(hosts, config, pinned=pinned)
            return torchrun.seconds_of_a_batch(metrics, setting.ranks, work.batch_size)
        stages = setting.ranks * (2 if method.kind == "interleaved 1F1B" else 1)
        arguments = [PEER, "--method", method.kind, "--model", work.model, "--data", work.data]
        arguments += ["--cut", cuts.peers(stages), "--batch-size", str(work.batch_size)]
        arguments += ["--micro-batches", str(method.micro_batches), "--steps", str(PEER_STEPS)]
        arguments += ["--few-messages"] * method.few_messages
        arguments += ["--bf16"] * work.bf16 + ["--channels-last"] * work.channels_last
        what = f"{setting.name}: {method.name}"
        return float(over_link.launch(hosts, arguments, what=what, pinned=pinned).splitlines()[-1])


@contextlib.contextmanager
def _hosts(setting: Setting) -> Iterator[list[Host]]:
    if setting.link is None:
        yield [Here() for _ in range(setting.ranks)]
        return
    with some_hosts(setting.ranks, setting.link) as hosts:
        yield hosts


def units_of(work: Work) -> int:
    """Of the model."""
    return len(blueprint_of(work.config(stages=1, objective="bp")).chain.units)
