"""BatchNorm over the batches of all replicas: as over the joint batch, in both directions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.modules.batchnorm import _BatchNorm

from pipelocal.config import TrainConfig
from pipelocal.config.resolve import blueprint_of
from pipelocal.errors import UserError
from pipelocal.replicas.join import join_replicas
from pipelocal.replicas.options import ReplicaOptions
from pipelocal.replicas.sync_batchnorm import SyncNorm, synchronise_norms
from pipelocal.stage.recompute import RecomputedBody
from pipelocal.stage.replay import copies_of_buffers, replay
from pipelocal.transport.groups import ReplicaGroup
from tests.launching import FOR_EVER
from tests.replicas import same_on_all, together

ROWS = [5, 2, 8]


def flat_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def image_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 3, 3, padding=1),
        nn.BatchNorm2d(3, momentum=None),
        nn.Sequential(nn.Tanh(), nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 2, 1)),
        nn.Flatten(2),
        nn.BatchNorm1d(2, track_running_stats=False),
    )


def volume_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(4, 2, 1), nn.BatchNorm3d(2, eps=0.1, momentum=0.3))


NETS: list[tuple[Callable[[], nn.Sequential], tuple[int, ...], int]] = [
    (flat_net, (4,), 1),
    (image_net, (4, 3, 3), 3),
    (volume_net, (4, 2, 1, 3), 1),
]
"""What builds a net, the shape of a row, and its number of norms."""


def batches(shape: tuple[int, ...], rows: Sequence[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(b, *shape, generator=generator, dtype=torch.float64) * 3 + 2).requires_grad_()
        for b in rows
    ]


def loss_of(out: Tensor) -> Tensor:
    """The mean over a replica's own rows."""
    return (out.flatten(1).square().sum(1) * 0.3 + out.flatten(1).sin().sum(1)).mean()


def joint(net: nn.Module, xs: Sequence[Tensor]) -> list[Tensor]:
    """Each replica's output, of one process that has all rows."""
    out: Tensor = net(torch.cat(list(xs)))
    return list(out.split([len(x) for x in xs]))  # type: ignore[no-untyped-call]


def mean_over_ranks(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = tensor.clone()
    dist.all_reduce(total, group=group)
    return total / group.size()


def close(actual: Tensor | None, expected: Tensor | None) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def trained_pairs(
    group: dist.ProcessGroup,
) -> Iterator[tuple[nn.Sequential, nn.Sequential, tuple[int, ...]]]:
    """A synchronised net, and the same as it was."""
    for build, shape, norms in NETS:
        torch.manual_seed(3)
        expected = build().double()
        actual = copy.deepcopy(expected)
        before = [id(part) for part in actual.modules()]
        names = {name: id(value) for name, value in actual.state_dict(keep_vars=True).items()}
        assert synchronise_norms(actual, group) == norms
        assert synchronise_norms(actual, group) == 0
        assert [id(part) for part in actual.modules()] == before
        after = {name: id(value) for name, value in actual.state_dict(keep_vars=True).items()}
        assert after == names
        yield actual, expected, shape


def test_as_over_the_joint_batch(tmp_path: Path) -> None:
    """Outputs, gradients and running statistics, with other numbers of rows on each replica."""

    def body(group: dist.ProcessGroup) -> None:
        me, size = group.rank(), group.size()
        for actual, expected, shape in trained_pairs(group):
            for step in range(3):
                xs = batches(shape, ROWS[:size] if step else [4] * size, seed=step)
                out = actual(xs[me])
                outs = joint(expected, xs)
                close(out, outs[me])
                actual.zero_grad()
                expected.zero_grad()
                x = xs[me].detach().requires_grad_()
                if (
                    step == 1
                ):  # recomputed, which runs the collectives of a forward pass in the backward
                    recomputed = RecomputedBody(actual, 1)
                    loss_of(recomputed.replay(x, copies_of_buffers(actual))).backward()  # type: ignore[no-untyped-call]
                else:
                    loss_of(replay(actual, x)).backward()  # type: ignore[no-untyped-call]
                losses = torch.stack([loss_of(o) for o in outs])
                losses.mean().backward()  # type: ignore[no-untyped-call]
                # Own rows bear on the loss of all replicas, of which the mean has a size-th part.
                assert x.grad is not None
                assert xs[me].grad is not None
                close(x.grad / size, xs[me].grad)
                if step == 0:  # as many rows on each: the mean of the losses is the joint batch's
                    close(losses.mean(), loss_of(torch.cat(outs)))
                for a, e in zip(actual.parameters(), expected.parameters(), strict=True):
                    assert a.grad is not None
                    close(mean_over_ranks(a.grad, group), e.grad)
                for name, value in actual.state_dict().items():
                    close(value, expected.state_dict()[name])
                    assert same_on_all(value, group), name
            evaluated = batches(shape, [3], seed=9)[0]
            close(actual.eval()(evaluated), expected.eval()(evaluated))

    together(tmp_path / "three", body, size=3)
    together(tmp_path / "two", body, size=2)


def test_second_derivatives(tmp_path: Path) -> None:
    """Of a penalty on each replica's gradient with respect to its own rows, as reconciliation has."""

    def body(group: dist.ProcessGroup) -> None:
        me, size = group.rank(), group.size()
        for actual, expected, shape in trained_pairs(group):
            xs = batches(shape, ROWS[:size], seed=5)
            x = xs[me].detach().requires_grad_()
            (g,) = torch.autograd.grad(loss_of(actual(x)), x, create_graph=True)
            g.square().sum().backward()  # type: ignore[no-untyped-call]
            all_losses = torch.stack([loss_of(o) for o in joint(expected, xs)]).sum()
            gs = torch.autograd.grad(all_losses, xs, create_graph=True)
            close(g, gs[me])
            (sum(g.square().sum() for g in gs) / size).backward()  # type: ignore[union-attr]
            assert x.grad is not None
            assert xs[me].grad is not None
            close(x.grad / size, xs[me].grad)
            for a, e in zip(actual.parameters(), expected.parameters(), strict=True):
                own = torch.zeros_like(a) if a.grad is None else a.grad
                close(
                    mean_over_ranks(own, group), torch.zeros_like(e) if e.grad is None else e.grad
                )

    together(tmp_path, body, size=2)


def test_corners(tmp_path: Path) -> None:
    """Large means in float32, bfloat16, channels last, copies, a replica without rows, one row each."""

    def body(group: dist.ProcessGroup) -> None:
        me = group.rank()
        generator = torch.Generator().manual_seed(0)
        all_rows = torch.randn(64, 3, 5, 5, generator=generator) * 0.1 + 1000 * torch.arange(
            3
        ).view(3, 1, 1)
        norm = nn.BatchNorm2d(3)
        expected = copy.deepcopy(norm).double()
        assert synchronise_norms(norm, group) == 1
        mine = all_rows.chunk(2)[me]
        out = norm(mine)
        exact = expected(all_rows.double())
        assert out.dtype == torch.float32
        # A number of 2000 has an error of 6e-5 to begin with, and is divided by 0.1.
        torch.testing.assert_close(out.double(), exact.chunk(2)[me], rtol=0, atol=3e-3)
        assert norm.running_var is not None
        assert expected.running_var is not None
        running_var = expected.running_var.float()
        torch.testing.assert_close(norm.running_var, running_var, rtol=1e-5, atol=0)

        last = norm(mine.to(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(last, out, rtol=0, atol=3e-3)

        half = norm((mine - 1000 * torch.arange(3).view(3, 1, 1)).bfloat16())
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), out, rtol=0.02, atol=0.02)

        copied = copy.deepcopy(norm)
        assert torch.equal(copied(mine), norm(mine))
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        replay(norm, mine)
        torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)

        # No rows on one replica, which still answers the other in both passes; and one row on each.
        for rows in (8 * me, 1):
            flat = nn.BatchNorm1d(3)
            alone = copy.deepcopy(flat)
            synchronise_norms(flat, group)
            x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(me)).requires_grad_()
            y: Tensor = flat(x)
            assert y.shape == x.shape
            y.square().sum().backward()  # type: ignore[no-untyped-call]
            assert x.grad is not None
            assert x.grad.isfinite().all()
            if rows == 8:
                torch.testing.assert_close(y, alone(x))
            assert flat.running_var is not None
            assert flat.running_var.isfinite().all()
            assert same_on_all(flat.running_var, group)

        # Why there is a class for it here at all.
        with pytest.raises(ValueError, match="GPU"):
            nn.SyncBatchNorm(3, process_group=group)(mine)

    together(tmp_path, body, size=2)


def test_one_replica_is_an_ordinary_one(tmp_path: Path) -> None:
    def body(group: dist.ProcessGroup) -> None:
        torch.manual_seed(0)
        norm, x = nn.BatchNorm1d(4), torch.randn(6, 4)
        same = copy.deepcopy(norm)
        synchronise_norms(norm, group)
        assert torch.equal(norm(x), same(x))
        torch.testing.assert_close(norm.state_dict(), same.state_dict(), rtol=0, atol=0)

    together(tmp_path, body, size=1)


def test_an_objectives_own_norms_too(tmp_path: Path) -> None:
    """Such as that of InfoPro's decoder."""
    config = TrainConfig(model="resnet8", objective="infopro")
    stage = blueprint_of(config).build_stage(1, device=torch.device("cpu"), total_steps=1)

    def body(group: dist.ProcessGroup) -> None:
        replicas = ReplicaGroup(
            host=group,
            device=group,
            mesh=DeviceMesh.from_group(group, "cpu", mesh_dim_names=("replica",)),
            index=0,
            count=1,
            stage=1,
            computes_on=torch.device("cpu"),
            check=lambda: None,
            waits=lambda _: None,
            timeout_s=FOR_EVER,
        )
        join_replicas(stage, replicas, ReplicaOptions(sync_batchnorm=True), seed=0)
        norms = [part for each in stage.modules for part in each.modules()]
        norms = [part for part in norms if isinstance(part, _BatchNorm)]
        assert all(isinstance(norm, SyncNorm) for norm in norms)

    assert stage.own_objective is not None
    together(tmp_path, body, size=1)


class OwnForward(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).relu()


class OwnName(nn.BatchNorm1d):
    pass


def test_what_is_replaced_and_what_is_refused() -> None:
    nobody: dist.ProcessGroup = None  # type: ignore[assignment]
    net = nn.Sequential(OwnName(2), nn.SyncBatchNorm(2), nn.InstanceNorm1d(2), nn.LayerNorm(2))
    assert synchronise_norms(net, nobody) == 1
    assert isinstance(net[0], SyncNorm)
    assert isinstance(net[0], OwnName)
    assert type(net[1]) is nn.SyncBatchNorm
    for refused in (OwnForward(2), nn.LazyBatchNorm2d()):
        net = nn.Sequential(nn.BatchNorm1d(2), refused)
        with pytest.raises(UserError, match=type(refused).__name__):
            synchronise_norms(net, nobody)
        assert type(net[0]) is nn.BatchNorm1d
