# Train on a Ray cluster, a task for each rank:
#
#     python on_ray.py 4 train --stages 4 --snapshot-every 200 --out /shared/runs/first
#
# Ray puts the ranks side by side on as few nodes as have room: a CPU each, or with GPUS=1 a GPU each.
# RESTARTS (3) says how often a run that lost a rank begins anew, from its newest snapshot. It wants
# pip install 'pipelocal[ray]' on all nodes, and a folder for --out that all of them see.
"""Run pipelocal on Ray."""

import ctypes
import os
import signal
import socket
import subprocess
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

USER_ERROR = 2
PARENT_DIES = 1  # PR_SET_PDEATHSIG


@ray.remote(max_retries=0)
def meeting_point() -> tuple[str, int]:
    """The address of the first rank's node, and a port that is free there."""
    with socket.create_server(("", 0)) as server:
        return ray.util.get_node_ip_address(), server.getsockname()[1]


@ray.remote(max_retries=0)
def rank(number: int, size: int, meeting: tuple[str, int], arguments: list[str]) -> int:
    """Run one rank; its exit code."""
    address, port = meeting
    environment = {"RANK": str(number), "WORLD_SIZE": str(size), "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    # A process of its own, as Ray's has libraries that do not go with torch's; it ends with Ray's.
    return subprocess.run(
        [sys.executable, "-m", "pipelocal", *arguments],
        env=os.environ | environment,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(PARENT_DIES, signal.SIGTERM),
        check=False,
    ).returncode


def attempt(size: int, arguments: list[str]) -> list[int]:
    """Run all ranks; their exit codes, 1 for one that was lost."""
    needs = {"GPU" if os.environ.get("GPUS") else "CPU": 1}
    group = placement_group([needs] * size, strategy="PACK")
    ray.get(group.ready())
    here = [PlacementGroupSchedulingStrategy(group, index) for index in range(size)]
    cpus, gpus = needs.get("CPU", 0), needs.get("GPU", 0)
    on = [{"scheduling_strategy": at, "num_cpus": cpus, "num_gpus": gpus} for at in here]
    meeting = ray.get(meeting_point.options(**on[0]).remote())
    tasks = [rank.options(**on[n]).remote(n, size, meeting, arguments) for n in range(size)]
    codes = []
    for task in tasks:
        try:
            codes.append(ray.get(task))
        except ray.exceptions.RayError:  # the worker, or its node, is gone
            codes.append(1)
    ray.util.remove_placement_group(group)
    return codes


if __name__ == "__main__":
    ray.init()  # the cluster of RAY_ADDRESS, or this machine alone
    for _ in range(1 + int(os.environ.get("RESTARTS", "3"))):
        codes = attempt(int(sys.argv[1]), sys.argv[2:])
        if not any(codes) or USER_ERROR in codes:  # which would only be said again
            break
    sys.exit(max(map(abs, codes)))
