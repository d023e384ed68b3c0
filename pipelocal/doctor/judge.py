"""Judges all ranks' facts: what is wrong, and how to fix it. It communicates with no rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

from pipelocal.config.doctor import DoctorConfig
from pipelocal.doctor.facts import Facts
from pipelocal.doctor.links import Clock, Link
from pipelocal.system.quantities import parse_bytes

LEAST_OPEN_FILES = 512
LEAST_MEMORY = 2**30
MOST_CLOCK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem that was found."""

    ranks: list[int]
    what: str
    mend: str
    stops: bool
    """Whether it prevents training; otherwise training is slow, or at risk."""


def judge(
    facts: Sequence[Facts],
    links: Sequence[Link],
    clocks: Sequence[Clock],
    unseen: Sequence[int],
    config: DoctorConfig,
) -> list[Finding]:
    """Return all findings, those that prevent training first.

    Args:
        facts: facts of all ranks, in order.
        links: all measured links.
        clocks: all measured clocks.
        unseen: ranks that did not see the file that rank 0 wrote to the folder.
        config: rank 0's options.
    """
    found = [
        *_differences(facts),
        *_devices(facts),
        *_folder(facts, unseen, parse_bytes("--least-free", config.least_free)),
        *_inputs(facts),
        *_network(facts),
        *_host(facts, config.threads),
        *_links(links, config.slow_link),
        *_clocks(clocks),
    ]
    return sorted(found, key=lambda finding: not finding.stops)


def _differences(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Yield findings for facts that should be the same everywhere, naming the ranks in the minority."""
    for name, value_of in (
        ("pipelocal", lambda f: f.pipelocal),
        ("torch", lambda f: f.torch),
        ("Python", lambda f: ".".join(f.python.split(".")[:2])),
        ("NCCL", lambda f: f.nccl),
    ):
        yield from _minority(
            facts,
            value_of,
            f"{name} {{value}}, where most ranks have {{usual}}",
            f"one {name} for all",
        )
    yield from _minority(
        facts,
        lambda f: f.device is not None and "/cuda/" in f.device,
        "CUDA: {value}, where it is {usual} for most ranks",
        "give every rank a GPU, or --device cpu to all",
    )
    yield from _minority(
        facts,
        lambda f: f.command,
        "other options than most ranks",
        "start all with the same options",
    )


def _minority(
    facts: Sequence[Facts], value_of: Callable[[Facts], Hashable], what: str, mend: str
) -> Iterator[Finding]:
    values = {each.rank: value_of(each) for each in facts}
    usual, _ = Counter(values.values()).most_common(1)[0]
    for value in dict.fromkeys(values.values()):
        if value != usual:
            ranks = [rank for rank, own in values.items() if own == value]
            text = what.format(value=value, usual=usual)
            yield Finding(ranks=ranks, what=text, mend=mend, stops=True)


def _devices(facts: Sequence[Facts]) -> Iterator[Finding]:
    for each in facts:
        if each.device_error is not None:
            yield _of(
                each, each.device_error, "see nvidia-smi and CUDA_VISIBLE_DEVICES on this host"
            )
    users: dict[str, list[int]] = {}
    for each in facts:
        if each.device is not None and "/cuda/" in each.device:
            users.setdefault(each.device, []).append(each.rank)
    for device, ranks in users.items():
        if len(ranks) > 1:
            yield Finding(
                ranks=ranks,
                what=f"share one GPU ({device}): edges go through the host's memory",
                mend="start no more ranks on a host than it has GPUs",
                stops=False,
            )


def _folder(facts: Sequence[Facts], unseen: Sequence[int], least: int) -> Iterator[Finding]:
    for each in facts:
        if each.out_error is not None:
            yield _of(
                each, f"--out {each.out}: {each.out_error}", "make it writable, or choose another"
            )
        elif each.out_free_bytes is not None and each.out_free_bytes < least:
            room = f"{each.out_free_bytes / 2**20:.0f} MiB"
            yield _of(
                each, f"--out {each.out}: only {room} of room", "free space, or choose another"
            )
    broken = {each.rank for each in facts if each.out_error is not None}
    apart = [rank for rank in unseen if rank not in broken]
    if apart and 0 not in broken:
        yield Finding(
            ranks=apart,
            what=f"--out is not the folder that rank 0 sees as {facts[0].out}",
            mend="give an absolute path in a file system that all hosts share",
            stops=True,
        )


def _inputs(facts: Sequence[Facts]) -> Iterator[Finding]:
    for each in facts:
        if each.model_error is not None:
            yield _of(each, each.model_error, "put the model's file where this rank looks for it")
        if each.data_error is not None:
            yield _of(each, each.data_error, "rank 0 alone reads data: it must find it")


def _network(facts: Sequence[Facts]) -> Iterator[Finding]:
    hosts = {each.host for each in facts}
    for each in facts:
        if each.interface_missing:
            there = ", ".join(each.interfaces)
            what = f"GLOO_SOCKET_IFNAME={each.gloo_interface}, but there are {there}"
            yield _of(each, what, "name one of these, or unset it")
        if each.address is None:
            yield _of(each, each.address_error or "no address", "set MASTER_ADDR to an address")
        elif len(hosts) > 1 and each.address.startswith("127."):
            what = f"other hosts are told to reach it at {each.address}, which is every host's own"
            yield _of(each, what, "set MASTER_ADDR to the first host's address in the network")


def _host(facts: Sequence[Facts], threads: int) -> Iterator[Finding]:
    for each in facts:
        wanted = threads * each.ranks_on_host
        if wanted > each.cores:
            what = f"{each.ranks_on_host} rank(s) of {threads} thread(s) share {each.cores} core(s)"
            yield _of(each, what, "fewer ranks on this host, or fewer --threads", stops=False)
        if each.open_files < LEAST_OPEN_FILES:
            what = f"may open {each.open_files} files and connections only"
            yield _of(each, what, "ulimit -n 65536", stops=False)
        if each.memory_free_bytes < LEAST_MEMORY:
            what = f"{each.memory_free_bytes / 2**20:.0f} MiB of memory are free"
            yield _of(each, what, "end what else runs on this host", stops=False)


def _links(links: Sequence[Link], slow_mbit: float) -> Iterator[Finding]:
    for link in links:
        mbit = link.bits_per_s / 1e6
        if mbit < slow_mbit:
            yield Finding(
                ranks=[link.source, link.source + 1],
                what=f"the link {link.source} -> {link.source + 1} carries {mbit:.3g} Mbit/s, after "
                f"{1000 * link.one_way_s:.3g} ms",
                mend="another interface (GLOO_SOCKET_IFNAME), --wire int8, or a cut where less crosses",
                stops=False,
            )


def _clocks(clocks: Sequence[Clock]) -> Iterator[Finding]:
    for clock in clocks:
        if abs(clock.ahead_s) > MOST_CLOCK_S:
            yield Finding(
                ranks=[clock.rank],
                what=f"its clock is {clock.ahead_s:+.1f} s off that of rank 0",
                mend="let the hosts keep time (NTP): logs cannot be compared",
                stops=False,
            )


def _of(facts: Facts, what: str, mend: str, *, stops: bool = True) -> Finding:
    return Finding(ranks=[facts.rank], what=what, mend=mend, stops=stops)
