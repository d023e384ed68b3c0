"""``pipelocal doctor``, on every rank: gather facts, measure links, and let rank 0 judge."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from pipelocal.config.doctor import DoctorConfig
from pipelocal.doctor.facts import Facts, gather
from pipelocal.doctor.judge import Finding, judge
from pipelocal.doctor.links import Clock, Link, measure_clock, measure_links
from pipelocal.errors import PipelocalError, UserError
from pipelocal.options import check_values
from pipelocal.ranks.breakable import breakable
from pipelocal.ranks.control import ControlPlane
from pipelocal.ranks.host import use_interface
from pipelocal.ranks.world import World
from pipelocal.system.quantities import parse_bytes
from pipelocal.system.streams import result_wanted
from pipelocal.system.strict_json import to_json
from pipelocal.telemetry.formats import format_bytes

PATIENCE_S = 120.0
"""Seconds to wait for a rank's facts, including model and data."""
LINKS_PATIENCE_S = 600.0
"""Seconds to wait for the measurement of all links, some of which may be slow."""

MOST_LINK_BYTES = 2**30
"""Most bytes of a message, which both ends of a link hold in memory."""


class Unwell(PipelocalError):
    """A problem was found that prevents training."""


def doctor(config: DoctorConfig, stream: TextIO, world: World | None = None) -> None:
    """Examine all ranks; rank 0 writes the findings.

    Raises:
        UserError: the environment is invalid, or ranks do not come.
        Unwell: on rank 0, if a problem prevents training.
    """
    check_values(config)
    size = parse_bytes("--link-size", config.link_size)
    if size > MOST_LINK_BYTES:
        raise UserError(f"--link-size {config.link_size}: give at most 1GiB")
    parse_bytes("--least-free", config.least_free)
    use_interface(config.interface)
    world = world or World.from_environment()
    control = ControlPlane(world)
    try:
        control.put(f"facts/{world.rank}", asdict(gather(config, world)))
        seen = _sees_what_rank_0_wrote(config, world, control)
        everyone = [Facts(**facts) for facts in _from_all(control, "facts")]
        links: list[Link] = []
        clock = Clock(rank=world.rank, ahead_s=0.0)
        if world.size > 1 and not any(facts.interface_missing for facts in everyone):
            links, clock = _measured(world, size, control)
        found = [seen, [asdict(link) for link in links], asdict(clock)]
        control.put(f"measured/{world.rank}", found)
        if world.rank == 0:
            _report(config, everyone, _from_all(control, "measured"), control, stream)
        control.leave()
    except BaseException as error:
        if not isinstance(error, Unwell):
            control.fail(error)
        raise
    finally:
        control.stop_watching()


def _from_all(control: ControlPlane, what: str) -> list[Any]:
    """Return what every rank published under a name, in order."""
    ranks = range(control.world.size)
    return [control.wait_for(f"{what}/{rank}", timeout_s=PATIENCE_S) for rank in ranks]


def _measured(world: World, size: int, control: ControlPlane) -> tuple[list[Link], Clock]:
    def measure() -> tuple[list[Link], Clock]:
        store = world.store_of_group()
        dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size)
        return measure_links(size), measure_clock()

    try:
        measured = breakable(measure, check=control.check, timeout_s=LINKS_PATIENCE_S)
    except TimeoutError as error:
        raise UserError(
            f"the links between the ranks were not measured within {LINKS_PATIENCE_S:g} s: let ranks "
            f"through to each other on any port, or give a smaller --link-size"
        ) from error
    dist.destroy_process_group()
    return measured


def _sees_what_rank_0_wrote(config: DoctorConfig, world: World, control: ControlPlane) -> bool:
    """Return whether ``--out`` is the same folder as on rank 0."""
    folder = Path(config.out).absolute()
    if world.rank > 0:
        name = control.wait_for("probe", timeout_s=PATIENCE_S)
        seen = name is not None and (folder / name).exists()
        control.put(f"seen/{world.rank}", seen)
        return seen
    name = f".pipelocal-doctor-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError:
        name = ""  # which its facts tell
    control.put("probe", name or None)
    for rank in range(1, world.size):
        control.wait_for(f"seen/{rank}", timeout_s=PATIENCE_S)
    if name:
        with suppress(OSError):
            (folder / name).unlink()
    return True


def _report(
    config: DoctorConfig,
    facts: list[Facts],
    measured: list[Any],
    control: ControlPlane,
    stream: TextIO,
) -> None:
    links = [Link(**link) for _, own, _ in measured for link in own]
    clocks = [Clock(**clock) for _, _, clock in measured]
    unseen = [rank for rank, (seen, _, _) in enumerate(measured) if not seen]
    findings = judge(facts, links, clocks, unseen, config)
    with result_wanted():
        if config.json:
            stream.write(to_json(_as_json(facts, links, findings), indent=2) + "\n")
        else:
            _print(facts, links, findings, stream)
    stopping = sum(finding.stops for finding in findings)
    if stopping:
        control.leave()
        raise Unwell(f"{stopping} finding(s) that training cannot go well with")


def _as_json(
    facts: list[Facts], links: list[Link], findings: list[Finding]
) -> dict[str, list[dict[str, Any]]]:
    return {
        "ranks": [asdict(each) for each in facts],
        "links": [asdict(link) for link in links],
        "findings": [asdict(finding) for finding in findings],
    }


def _print(facts: list[Facts], links: list[Link], findings: list[Finding], stream: TextIO) -> None:
    console = Console(file=stream, highlight=False, width=150)
    ranks = Table(
        "rank", "host", "device", "versions", "cores", "memory", "room in --out", "link on"
    )
    by_source = {link.source: link for link in links}
    for each in facts:
        link = by_source.get(each.rank)
        ranks.add_row(
            str(each.rank),
            each.host,
            each.device.partition("/")[2] if each.device else "-",
            f"pipelocal {each.pipelocal}, torch {each.torch}, Python {each.python}",
            str(each.cores),
            format_bytes(each.memory_free_bytes),
            "-" if each.out_free_bytes is None else format_bytes(each.out_free_bytes),
            f"{1000 * link.one_way_s:.3g} ms, {link.bits_per_s / 1e6:,.0f} Mbit/s" if link else "-",
        )
    wrong = Table("ranks", "", "what is wrong", "how to mend it")
    for finding in findings:
        stops = "stops" if finding.stops else "hurts"
        wrong.add_row(", ".join(map(str, finding.ranks)), stops, finding.what, finding.mend)
    # Not directly to the stream: rich ends the program if the reader has closed it.
    with console.capture() as captured:
        console.print(ranks)
        console.print(wrong if findings else "nothing wrong was found")
    stream.write(captured.get())
