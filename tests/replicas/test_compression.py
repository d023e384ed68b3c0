"""Compressed averages of gradients: by hand, the same on all replicas, in as few bytes as they say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelocal.errors import UserError
from pipelocal.replicas import signs
from pipelocal.replicas.compression import COMPRESSIONS, compress
from pipelocal.replicas.hook import Compression, HookSettings
from pipelocal.replicas.signs import gaps_are_fewer
from tests.launching import start, world_of
from tests.replicas import same_on_all, together

SHARE = 0.25  # too large for gaps


class Carrier(nn.Module):
    """Parameters whose backward pass adds zeros."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.all = nn.ParameterList(parameters)

    def forward(self) -> Tensor:
        out: Tensor = sum((p * 0).sum() for p in self.all)
        return out


class Replica:
    """Parameters of some shapes, whose gradients are averaged in one compression."""

    def __init__(
        self,
        name: str,
        group: dist.ProcessGroup,
        shapes: Sequence[tuple[int, ...]],
        *,
        dtype: torch.dtype = torch.float32,
        rank: int = 1,
        seed: int = 0,
        share: float = SHARE,
        bucket_mb: float = 25,
        channels_last: bool = False,
    ) -> None:
        form = torch.channels_last if channels_last else torch.contiguous_format
        zeros = [torch.zeros(shape, dtype=dtype).to(memory_format=form) for shape in shapes]
        self.parameters = [nn.Parameter(zero) for zero in zeros]
        self.ddp = DistributedDataParallel(
            Carrier(self.parameters), process_group=group, bucket_cap_mb=bucket_mb
        )
        self.compression: Compression = compress(
            self.ddp, name, group, seed=seed, share=share, rank=rank
        )

    def average(self, gradients: Sequence[Tensor], step: int = 0) -> list[Tensor]:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.to(parameter.dtype, copy=True)
        self.compression.begin(step)
        self.ddp().backward()
        assert all(p.grad is not None and p.grad.dtype == p.dtype for p in self.parameters)
        return [p.grad for p in self.parameters if p.grad is not None]

    def sent(self, gradients: Sequence[Tensor]) -> int:
        before = self.compression.sent_bytes
        self.average(gradients)
        return self.compression.sent_bytes - before


def random(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_all_replicas_get_the_same_finite_numbers(tmp_path: Path) -> None:
    """Of buckets of any size and dtype, one after another; zeros stay zeros."""
    several = [(), (1,), (7,), (40, 30), (3, 5, 2, 2), (300, 101)]

    def body(group: dist.ProcessGroup) -> None:
        torch.cuda.is_available = lambda: False  # powersgd on the CPU refuses a machine with a GPU
        for name in COMPRESSIONS:
            for shapes, dtype in ((several, torch.float32), ([()], torch.float64)):
                replica = Replica(name, group, shapes, dtype=dtype, rank=2, bucket_mb=0.002)
                for step in range(4):
                    mine = random(shapes, seed=10 * step + group.rank())
                    averaged = flat(replica.average(mine, step))
                    assert averaged.isfinite().all(), name
                    assert averaged.any() or shapes == [()], name  # one number may well be left out
                    assert same_on_all(averaged, group), name
            for name_of_zeros in {name} - {"powersgd"}:  # which hands on what it left out before
                replica = Replica(name_of_zeros, group, several)
                zeros = replica.average([torch.zeros(shape) for shape in several])
                assert not flat(zeros).any(), name

    together(tmp_path, body, size=3)


def test_averages_by_hand(tmp_path: Path) -> None:
    """bf16 and sign of three replicas and two, and the bytes that each hands to collectives."""
    three = [[3.0, -1.0, 0.0, -2.0, 5.0], [1.0, 1.0, 0.0, -4.0, -1.0], [-2.0, 3.0, 0.0, 2.0, -1.0]]
    # Mean sizes 11 / 5, 7 / 5 and 8 / 5, in the mean 26 / 15. A zero votes as positive.
    majority = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]) * 26 / 15

    def body(group: dist.ProcessGroup) -> None:
        me, size = group.rank(), group.size()
        mine = torch.tensor(three[me])
        sign = Replica("sign", group, [(5,)])
        if size == 3:
            torch.testing.assert_close(sign.average([mine])[0], majority)
        else:
            tied = torch.tensor([1.0, 0.0, 1.0, -1.0, 0.0]) * (11 / 5 + 7 / 5) / 2
            torch.testing.assert_close(sign.average([mine])[0], tied)
        assert sign.compression.sent_bytes == (1 + 4) * (size - 1)

        shapes = [(33, 7), (6,)]
        all_gradients = [random(shapes, seed) for seed in range(size)]
        bf16 = Replica("bf16", group, shapes)
        averaged = flat(bf16.average(all_gradients[me]))
        everyone = torch.stack([flat(gradients) for gradients in all_gradients])
        assert torch.equal(averaged, everyone.bfloat16().float().sum(0) / size)
        torch.testing.assert_close(averaged, everyone.mean(0), rtol=0, atol=3.0 / 256)
        assert bf16.compression.sent_bytes == 2 * 237 * (size - 1)

        assert Replica("sign", group, shapes).sent(all_gradients[me]) == (30 + 4) * (size - 1)
        sparse = Replica("sparse-sign", group, shapes)
        assert sparse.sent(all_gradients[me]) == (60 + 4) * (size - 1)

    together(tmp_path / "three", body, size=3)
    together(tmp_path / "two", body, size=2)


def test_sparse_signs(tmp_path: Path) -> None:
    """Right in expectation, as few as asked for, drawn by each replica for itself and by the step alone."""
    count = 40_000
    values = torch.tensor([0.5, -1.0, 0.0, 2.0]).repeat_interleave(count // 4)  # none is cut at 1

    def body(group: dist.ProcessGroup) -> None:
        me = group.rank()
        gradients = [values if me == 0 else -values / 4]
        replica = Replica("sparse-sign", group, [(count,)])
        torch.manual_seed(7)
        before = torch.get_rng_state()
        averaged = replica.average(gradients, step=5)[0].clone()
        assert torch.equal(torch.get_rng_state(), before)
        expected = values * 3 / 8
        for kind, mean in zip(averaged.view(4, -1), expected[:: count // 4], strict=True):
            # The largest deviation of one number is 3.5 (of means), its mean's a hundredth of that.
            assert abs(kind.mean() - mean) < 5 * kind.std() / 100 + 1e-6
        size = 3.5 / 4 / SHARE
        kept_by = {
            3: (averaged.abs() - size * 3 / 8).abs() < 1e-5,  # one keeps +, the other its own -
            5: (averaged.abs() - size * 5 / 8).abs() < 1e-5,  # both signs alike: never here
        }
        assert not kept_by[5].any()
        only_0 = (averaged.abs() - size / 2).abs() < 1e-5
        only_1 = (averaged.abs() - size / 8).abs() < 1e-5
        both = kept_by[3]
        for kept in (only_0 | both, only_1 | both):
            assert abs(kept.float().mean() - SHARE) < 0.01
        # Independent draws: both keep by chance, that is by the squares of the probabilities.
        by_chance = (values / size).square().mean()
        assert abs(both.float().mean() - by_chance) < 0.01

        again = replica.average(gradients, step=5)[0].clone()
        other = replica.average(gradients, step=6)[0].clone()
        resumed = Replica("sparse-sign", group, [(count,)])
        reseeded = Replica("sparse-sign", group, [(count,)], seed=1)
        assert torch.equal(averaged, again)
        assert torch.equal(averaged, resumed.average(gradients, step=5)[0])
        assert not torch.equal(averaged, other)
        assert not torch.equal(averaged, reseeded.average(gradients, step=5)[0])

        # What is cut at 1 is kept for certain.
        spike = torch.full((101,), 0.01 * (me == 0))
        spike[50] = 10.0
        for step in range(5):
            assert Replica("sparse-sign", group, [(101,)]).average([spike], step)[0][50] > 0

    together(tmp_path, body, size=2)


@pytest.mark.parametrize("size", [2, 3])
def test_sparse_signs_as_gaps_give_the_same_bits(tmp_path: Path, size: int) -> None:
    """As those of two bits, on all replicas, in several buckets and with messages of unlike lengths."""
    shapes = [(), (64, 64), (3,), (500, 9), (64, 64), (2000,)]

    def body(group: dist.ProcessGroup) -> None:
        me = group.rank()
        fewer = signs.gaps_are_fewer

        def gradients_at(step: int) -> list[Tensor]:
            mine = random(shapes, seed=10 * step + me)
            if step == 1 and me == 0:  # nothing kept
                return [gradient * 0 for gradient in mine]
            if (
                step == 2 and me == 1
            ):  # far fewer than the share, as most probabilities are cut at 1
                for gradient in mine:
                    gradient.flatten()[1:] = 0
            if step == 3 and me == 1:  # long gaps, then short ones
                for gradient in mine:
                    gradient.flatten()[: gradient.numel() // 2] *= 1e-4
            if step == 4 and me == 1:  # diverged
                mine[1][5, 5] = torch.inf
            return mine

        for share in (0.001, 0.02, 0.1, 0.24):
            for dtype in (torch.float32, torch.bfloat16):

                def averages(share: float = share, dtype: torch.dtype = dtype) -> Tensor:
                    replica = Replica(
                        "sparse-sign", group, shapes, share=share, dtype=dtype, bucket_mb=0.01
                    )
                    steps = [flat(replica.average(gradients_at(i), i)).clone() for i in range(5)]
                    return torch.stack(steps).view(torch.uint8)

                gaps = averages()
                signs.gaps_are_fewer = lambda *_: False
                ternaries = averages()
                signs.gaps_are_fewer = fewer
                assert torch.equal(gaps, ternaries)
                assert same_on_all(gaps, group)
                assert gaps[0].any()

    together(tmp_path, body, size=size)


def test_sparse_signs_send_gaps_where_these_are_fewer_bytes(tmp_path: Path) -> None:
    """A message is as long as the longest one, and the lengths count too."""
    count = 10_000

    def body(group: dist.ProcessGroup) -> None:
        me, size = group.rank(), group.size()
        values = random([(count,)], seed=me)
        nothing = [torch.zeros(count)]
        for share in (0.001, 0.02, 0.1, 0.2):
            replica = Replica("sparse-sign", group, [(count,)], share=share)
            sent, remainder = divmod(replica.sent(values), size - 1)
            assert remainder == 0
            # The length, the scale, what is kept, and what is escaped if all were kept alike.
            long = (1 - share) ** 127
            expected = 4 + 4 + share * count * (1 + long / (1 - long))
            assert abs(sent - expected) < 0.1 * expected, (share, sent, expected)
            assert replica.sent(nothing) == (4 + 4) * (size - 1)
            sent_by_all = replica.sent(values if me == 0 else nothing)
            assert sent_by_all > 0.9 * expected * (size - 1)
        two_bits = (count // 4 + 4) * (size - 1)
        assert Replica("sparse-sign", group, [(count,)], share=0.25).sent(values) == two_bits
        assert Replica("sparse-sign", group, [(6,)], share=0.02).sent([torch.ones(6)]) == 6 * 2

    together(tmp_path, body, size=3)


@pytest.mark.parametrize(
    ("count", "share", "fewer"),
    [
        (10**6, 0.2440, True),
        (10**6, 0.2441, False),
        (10**9, 1e-6, True),
        (10**9, 1.0, False),
        (1, 0.001, False),
        (16, 0.001, False),
        (17, 0.001, True),
    ],
)
def test_which_packing(count: int, share: float, fewer: bool) -> None:
    assert gaps_are_fewer(count, share) is fewer


def test_gaps_in_many_buckets_under_way(tmp_path: Path) -> None:
    """Their lengths are waited for while messages of other buckets are still on their way."""
    shapes = [(64, 64)] * 12

    def body(group: dist.ProcessGroup) -> None:
        replica = Replica("sparse-sign", group, shapes, share=0.05, bucket_mb=0.001)
        for step in range(12):
            averaged = replica.average(random(shapes, 10 * step + group.rank()), step)
            assert same_on_all(flat(averaged), group)

    together(tmp_path, body, size=4)


def test_a_run_that_is_resumed_draws_the_same_in_several_buckets(tmp_path: Path) -> None:
    shapes = [(30, 20), (20,), (300, 300), (300, 30), (5,)]

    def body(group: dist.ProcessGroup) -> None:
        for name in ("sign", "sparse-sign", "bf16"):
            whole, resumed = (Replica(name, group, shapes, bucket_mb=0.05) for _ in range(2))
            for step in range(4):
                gradients = random(shapes, seed=10 * step + group.rank())
                averaged = flat(whole.average(gradients, step))
                if step >= 2:  # by then the buckets are not those of the beginning
                    assert torch.equal(averaged, flat(resumed.average(gradients, step)))

    together(tmp_path, body, size=2)


def test_powersgd(tmp_path: Path) -> None:
    """Right for a gradient of its rank; what it leaves out comes later; it recovers from zeros."""
    n, m = 24, 40

    def body(group: dist.ProcessGroup) -> None:
        torch.cuda.is_available = lambda: False
        me = group.rank()
        left, right = random([(n, 1), (1, m)], seed=0)
        one = left @ right
        bias, filters = random([(n,), (16, 8, 3, 3)], seed=me)
        shapes = [(n, m), (n,)]

        replica = Replica("powersgd", group, shapes)
        for step in range(5):
            matrix, vector = replica.average([one * (me + 1), bias], step)
            torch.testing.assert_close(matrix, one * 1.5)
            means = [random([(n,)], seed)[0] for seed in range(2)]
            torch.testing.assert_close(vector, (means[0] + means[1]) / 2)
            # Two plain averages, then two thin matrices and the vector; R = 2: 1 byte of payload a byte.
            sent = 4 * (n * m + n) * min(step + 1, 2) + 4 * (n + m + n) * max(step - 1, 0)
            assert replica.compression.sent_bytes == sent
        # Gradients of zeros, as behind a map that begins at zero; what follows is not zero for ever.
        for rank in (1, 3):
            replica = Replica("powersgd", group, shapes, rank=rank)
            for step in range(5):
                assert not flat(replica.average([one * 0, bias * 0], step)).any()
            for step in range(5, 8):
                torch.testing.assert_close(replica.average([one, bias], step)[0], one)

        # Of a full rank, the sum of what was sent tends to the sum of the gradients.
        torch.manual_seed(7)
        before = torch.get_rng_state()
        for rank in (1, 2, 4):
            replica = Replica("powersgd", group, [(n, m), (16, 8, 3, 3)], rank=rank)
            full = random([(n, m)], seed=3)[0]
            total = torch.zeros(n, m)
            for step in range(60):
                total += replica.average([full, filters], step)[0]
            error = (total / 60 - full).norm() / full.norm()
            assert error < 0.3 / rank, (rank, error)
            for step in range(60, 66):  # lower rank than asked for, and zeros
                gradient = one if step % 2 else one * 0
                assert flat(replica.average([gradient, filters * 0], step)).isfinite().all()
        assert torch.equal(torch.get_rng_state(), before)

    together(tmp_path, body, size=2)


def test_powersgd_with_many_buckets_under_way(tmp_path: Path) -> None:
    """It hung: the hook's callbacks wait on gloo's few threads for what needs such a thread."""
    shapes = [(64, 64)] * 12

    def body(group: dist.ProcessGroup) -> None:
        torch.cuda.is_available = lambda: False
        replica = Replica("powersgd", group, shapes, bucket_mb=0.001)
        for step in range(10):
            averaged = replica.average(random(shapes, 10 * step + group.rank()), step)
            assert same_on_all(flat(averaged), group)

    together(tmp_path, body, size=2)


def test_powersgd_takes_weights_with_their_channels_last(tmp_path: Path) -> None:
    shape = (16, 8, 3, 3)

    def body(group: dist.ProcessGroup) -> None:
        torch.cuda.is_available = lambda: False
        replica = Replica("powersgd", group, [shape], channels_last=True)
        left, right = random([(16, 1, 1, 1), (1, 8, 3, 3)], seed=0)
        gradient = (left * right).to(memory_format=torch.channels_last)
        for step in range(4):
            averaged = replica.average([gradient], step)[0]
            torch.testing.assert_close(averaged, gradient)
            assert averaged.stride() == gradient.stride()

    together(tmp_path, body, size=2)


@pytest.mark.parametrize("share", [SHARE, 0.01])
def test_a_replica_that_is_gone_is_an_error(tmp_path: Path, share: float) -> None:
    """And no average of what was never received."""

    def body(rank: int) -> None:
        torch.set_num_threads(1)
        world_of(rank)
        assert dist.group.WORLD is not None
        for name in ("bf16", "sign", "sparse-sign"):
            replica = Replica(name, dist.group.WORLD, [(1000,)], share=share)
            replica.average([torch.ones(1000)])
        if rank == 1:
            os._exit(0)
        with pytest.raises(RuntimeError, match=r"(?i)connection|closed|peer"):
            replica.average([torch.ones(1000)])
        os._exit(0)

    ranks = start(tmp_path, body, 2)
    assert ranks.wait() == [0, 0], ranks.output()


@pytest.mark.parametrize(
    ("name", "share", "rank", "error"),
    [
        ("sparse-sign", 0.0, 1, "a share of 0 of the coordinates"),
        ("sparse-sign", 1.5, 1, "a share of 1.5 of the coordinates"),
        ("powersgd", 0.5, 0, "matrices of rank 0"),
    ],
)
def test_what_cannot_be_is_refused(name: str, share: float, rank: int, error: str) -> None:
    nobody: dist.ProcessGroup = None  # type: ignore[assignment]
    with pytest.raises(UserError, match=error):
        COMPRESSIONS.get(name)(HookSettings(nobody, torch.device("cpu"), 0, share, rank))


def test_powersgd_refuses_the_cpu_of_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's hook waits for a CUDA device there, and is given the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    nobody: dist.ProcessGroup = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="where a GPU can be seen"):
        COMPRESSIONS.get("powersgd")(HookSettings(nobody, torch.device("cpu"), 0, 0.5, 1))


def test_the_names() -> None:
    assert set(COMPRESSIONS) == {"bf16", "powersgd", "sign", "sparse-sign"}
