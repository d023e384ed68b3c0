"""The Python interface: what it trains is what PyTorch would, and the same alone and on every rank."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

import pipelocal as pl
from pipelocal.errors import PipelocalError
from tests.launching import PATIENCE_S, python, run_script, start

ROOT = Path(__file__).parents[1]
X = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


IDS: Tensor = torch.arange(6)


def layers(units: int = 4) -> nn.Sequential:
    torch.manual_seed(3)
    hidden = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(units)]
    return nn.Sequential(*hidden, nn.Linear(6, 3))


def loader(batch_size: int = 10, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size, **options)


def sgd(named: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for _, p in named], lr=0.3, momentum=0.9)


def quiet(pipe: pl.Pipeline, *data: DataLoader[Any], epochs: int = 2, **rest: Any) -> Any:
    return pipe.fit(*data, epochs=epochs, progress=False, **rest)


def parts_of(pipe: pl.Pipeline) -> list[pl.Stage]:
    """The stages that a pipeline has built."""
    assert pipe._fitted is not None
    return pipe._fitted[1]


def assert_same(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


# What it trains.


def plain_training(net: nn.Sequential, epochs: int = 2, clip: float | None = None) -> nn.Sequential:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=5 * epochs)
    for _ in range(epochs):
        for x, y in loader():
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            schedule.step()
    return net


@pytest.mark.parametrize("clip", [None, 0.05])
def test_the_uncut_model_is_trained_as_by_a_loop_of_one_s_own(clip: float | None) -> None:
    """Optimizer, schedule, clipping and loss, bit for bit."""
    pipe = pl.Pipeline(
        layers(),
        stages=1,
        objective=pl.BackPropagation(),
        optimizer=sgd,
        schedule=lambda opt, total: torch.optim.lr_scheduler.OneCycleLR(
            opt, 0.3, total_steps=total
        ),
        clip_norm=clip,
    )
    quiet(pipe, loader())
    plain = plain_training(layers(), clip=clip)
    assert_same(pipe.module(), plain)
    free = plain_training(layers()).state_dict()
    assert clip is None or not torch.equal(plain.state_dict()["0.0.weight"], free["0.0.weight"])


def test_steps_are_what_fit_does() -> None:
    pipes = [
        pl.Pipeline(layers(), stages=2, objective=pl.SGR(every=2), optimizer=sgd) for _ in (1, 2)
    ]
    quiet(pipes[0], loader(), epochs=1)
    losses = [pipes[1].step(x, y)["loss"] for x, y in loader()]
    assert_same(pipes[0].module(), pipes[1].module())
    assert losses[-1] < losses[0]


def test_what_evaluate_says_is_what_the_module_does() -> None:
    def second(logits: Tensor, y: Tensor) -> Tensor:
        hits: Tensor = (logits.topk(2).indices == y[:, None]).sum()
        return hits

    task = pl.tasks.Classification(
        classes=3, label_smoothing=0.1, further_metrics={"second": second}
    )
    pipe = pl.Pipeline(layers(), stages=2, task=task, optimizer=sgd)
    summary = quiet(pipe, loader(shuffle=True), loader(20))
    net, found = pipe.module().eval(), pipe.evaluate(loader(20))
    with torch.no_grad():
        logits = net(X)
    assert (
        found["accuracy"] == summary["eval_accuracy"] == (logits.argmax(1) == Y).sum().item() / 50
    )
    assert found["second"] == second(logits, Y).item() / 50
    expected = F.cross_entropy(logits, Y, label_smoothing=0.1).item()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert len(found["stages"]) == 2
    assert found["stages"][1]["loss"] == found["loss"]


def test_the_network_up_to_a_stage() -> None:
    pipe = pl.Pipeline(layers(), stages=3, optimizer=sgd, freeze_stage="2:0")
    quiet(pipe, loader(shuffle=True))
    early = pipe.module(stage=1).eval()
    with torch.no_grad():
        right = (early(X).argmax(1) == Y).sum().item() / 50
    assert right == pipe.evaluate(loader())["stages"][0]["accuracy"]
    assert_same(pipe.module(stage=3), pipe.module())
    for stage, said in ((0, "there are stages 1 to 3"), (4, "there are"), (2, "never learnt")):
        with pytest.raises(pl.UserError, match=said):
            pipe.module(stage=stage)


def test_a_loss_of_one_s_own_and_a_model_with_a_forward() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            return self.out(torch.relu(self.second(x)))  # type: ignore[no-any-return]

    chain = pl.Chain.from_module(Net(), units=["first", "second", "out"], input_shape=(6,))
    pipe = pl.Pipeline(chain, cut=["second"], loss=nn.MultiMarginLoss(), optimizer=sgd)
    quiet(pipe, loader(), epochs=10)
    net = pipe.module()
    assert isinstance(net, Net)
    with torch.no_grad():
        expected = nn.MultiMarginLoss()(net(X), Y)
    assert pipe.evaluate(loader())["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert expected < nn.MultiMarginLoss()(Net()(X), Y)


def test_a_run_is_called_after_the_module_and_the_objective(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not after the Chain that holds the module, nor None where nothing was said."""
    chain = pl.Chain.from_module(layers(), units=list("01234"), input_shape=(6,))
    pl.Pipeline(chain, stages=2).fit(loader(), max_steps=1)
    assert "\nSequential on TensorDataset, greedy: 2 stage(s)" in capsys.readouterr().out


def test_groups_and_a_rate_for_each_stage() -> None:
    seen: dict[int, Any] = {}

    def optimizer(named: Any, place: pl.Place) -> torch.optim.Optimizer:
        named = list(named)
        seen[place.number] = [name for name, _ in named]
        made = torch.optim.AdamW(pl.decay_groups(named, 0.1), lr=0.1 / place.number)
        assert [len(group["params"]) for group in made.param_groups] == [len(named) // 2] * 2
        assert [group["weight_decay"] for group in made.param_groups] == [0.1, 0.0]
        return made

    rates: dict[int, set[float]] = {}

    class Look(pl.Callback):
        def on_batch_end(self, event: pl.BatchEnd) -> None:
            stage = parts_of(pipe)[event.stage - 1]
            rates.setdefault(event.stage, set()).add(stage.optimizer.param_groups[0]["lr"])

    pipe = pl.Pipeline(layers(), stages=2, head="linear", optimizer=optimizer)
    pipe.step(X, Y)
    assert seen[1] == [
        "0.0.weight",
        "0.0.bias",
        "1.0.weight",
        "1.0.bias",
        "head/linear.weight",
        "head/linear.bias",
    ]
    assert [stage.optimizer.param_groups[0]["lr"] for stage in parts_of(pipe)] == [0.1, 0.05]
    quiet(pipe, loader(), epochs=1, callbacks=[Look()])
    assert rates.keys() == {1, 2}


def test_steps_alone_take_as_many_epochs_as_they_need() -> None:
    """One epoch of five batches was all that max_steps=7 trained on."""
    pipe = pl.Pipeline(layers(), stages=2, optimizer=sgd)
    assert pipe.fit(loader(), max_steps=7, progress=False)["steps"] == 7


def test_schedules_count_updates() -> None:
    totals, steps = [], [0]

    class Counting(torch.optim.lr_scheduler.LambdaLR):
        def step(self, epoch: Any = None) -> None:
            steps[0] += 1
            super().step(epoch)

    def schedule(opt: torch.optim.Optimizer, total: int) -> Counting:
        totals.append(total)
        return Counting(opt, lambda _: 1.0)

    pipe = pl.Pipeline(layers(), stages=1, optimizer=sgd, schedule=schedule, accumulate=2)
    quiet(pipe, loader(), epochs=3)  # five batches an epoch: two updates of two, and one of one
    assert totals == [9]
    assert steps == [9 + 1]  # the first is the constructor's


def test_callbacks_are_told_of_every_stage() -> None:
    told: list[Any] = []

    class Note(pl.Callback):
        def on_batch_end(self, event: pl.BatchEnd) -> None:
            assert torch.isfinite(event.loss)
            told.append(("batch", event.stage, event.epoch, event.step))

        def on_epoch_end(self, event: pl.EpochEnd) -> None:
            told.append(("epoch", event.stage, event.epoch, event.step))

        def on_evaluation_end(self, event: pl.EvaluationEnd) -> None:
            assert event.figures.keys() >= {"loss", "accuracy"}
            told.append(("evaluation", event.stage, event.epoch, event.step))

    pipe = pl.Pipeline(layers(), stages=2, optimizer=sgd)
    quiet(pipe, loader(25), loader(), callbacks=[Note()])
    one = [each for each in told if each[1] == 1]
    assert one == [
        *[("batch", 1, 1, 1), ("batch", 1, 1, 2), ("epoch", 1, 1, 2), ("evaluation", 1, 1, 2)],
        *[("batch", 1, 2, 3), ("batch", 1, 2, 4), ("epoch", 1, 2, 4), ("evaluation", 1, 2, 4)],
    ]
    assert [(kind, *rest) for kind, stage, *rest in told if stage == 2] == [
        (kind, *rest) for kind, _, *rest in one
    ]


def test_torch_is_left_as_it_was() -> None:
    """Threads and generators; a script or a notebook goes on behind a training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pipe = pl.Pipeline(layers(), stages=2, optimizer=sgd)
    torch.manual_seed(5)
    quiet(pipe, loader(shuffle=True), loader(), epochs=1)
    pipe.step(X, Y)
    pipe.evaluate(loader())
    found = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert found == 2
    assert torch.equal(torch.rand(3), expected)


# Rules of one's own.


class Rebuilding(pl.Greedy, nn.Module):
    figure_names = ("error",)

    def __init__(self, place: pl.Place) -> None:
        super().__init__()
        self.decoder = nn.Linear(place.output_shape[0], place.input_shape[0])

    def loss(self, local: pl.LocalPass, out: Tensor) -> Tensor:
        error: Tensor = (self.decoder(out) - local.x.detach()).square().mean()
        self.figures["error"] = error
        return super().loss(local, out) + error


def test_an_objective_s_parameters_are_trained_by_the_gradient_of_what_it_adds() -> None:
    pipe = pl.Pipeline(layers(1), stages=1, objective=Rebuilding, optimizer=sgd)
    net = layers(1)
    plain = nn.Linear(6, 6)
    pipe.step(X, Y)
    (stage,) = parts_of(pipe)
    assert isinstance(stage.objective, Rebuilding)
    decoder = stage.objective.decoder
    before = pl.Pipeline(layers(1), stages=1, objective=Rebuilding, optimizer=sgd)
    before.evaluate(loader())  # builds nothing but what is evaluated
    plain.load_state_dict(_first_decoder())
    optimizer = sgd([*net.named_parameters(), *plain.named_parameters()])
    hidden = net[0](X)
    loss = F.cross_entropy(net[1](hidden), Y) + (plain(hidden) - X).square().mean()
    loss.backward()
    optimizer.step()
    assert torch.allclose(decoder.weight, plain.weight, atol=1e-7)
    assert torch.allclose(stage.body[0][0].weight, net[0][0].weight, atol=1e-7)  # type: ignore[index]


def _first_decoder() -> dict[str, Tensor]:
    """What the decoder of stage 1 begins with."""
    pipe = pl.Pipeline(
        layers(1),
        stages=1,
        objective=Rebuilding,
        optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.0),
    )
    pipe.step(X, Y)
    objective = parts_of(pipe)[0].objective
    assert isinstance(objective, Rebuilding)
    return objective.decoder.state_dict()


def test_a_run_that_fails_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Data order, optimizer, schedule, the objective's parameters and its figures."""

    class Fail(pl.Callback):
        def on_batch_end(self, event: pl.BatchEnd) -> None:
            if event.stage == 2 and event.step == 8:
                raise RuntimeError("the power is out")

    def pipe() -> pl.Pipeline:
        return pl.Pipeline(
            layers(),
            stages=2,
            objective=Rebuilding,
            optimizer=lambda named: torch.optim.AdamW(pl.decay_groups(named, 0.1), lr=0.01),
            schedule=lambda o, total: torch.optim.lr_scheduler.OneCycleLR(
                o, 0.01, total_steps=total
            ),
            snapshot_every=3,
        )

    whole, broken, again = pipe(), pipe(), pipe()
    expected = quiet(whole, loader(shuffle=True), out=str(tmp_path / "whole"))
    with pytest.raises(pl.StageError, match=r"stage 2, batch \d+: RuntimeError: the power is out"):
        quiet(broken, loader(shuffle=True), out=str(tmp_path / "broken"), callbacks=[Fail()])
    summary = quiet(again, loader(shuffle=True), out=str(tmp_path / "broken"))
    assert_same(whole.module(), again.module())
    for one, other in zip(expected["stages"], summary["stages"], strict=True):
        assert one["figures"]["train"] == other["figures"]["train"] != {}
        assert one["loss"] == other["loss"]
    loaded = pipe()
    loaded.load(str(tmp_path / "broken"))
    assert_same(loaded.module(), whole.module())
    for stage, other in zip(parts_of(loaded), parts_of(whole), strict=True):
        assert_same(stage.head, other.head)
        assert isinstance(stage.objective, Rebuilding)
        assert isinstance(other.objective, Rebuilding)
        assert_same(stage.objective, other.objective)
    with pytest.raises(pl.UserError, match=r"trained from Python, by a Pipeline of Sequential"):
        pl.load(str(tmp_path / "broken"))


def test_a_changed_optimizer_is_another_run(tmp_path: Path) -> None:
    class Fail(pl.Callback):
        def on_batch_end(self, event: pl.BatchEnd) -> None:
            raise RuntimeError(event.step)

    def fit(rate: float, *callbacks: pl.Callback) -> None:
        def adam(named: Any) -> torch.optim.Optimizer:
            return torch.optim.Adam([p for _, p in named], lr=rate)

        pipe = pl.Pipeline(layers(), stages=2, optimizer=adam)
        quiet(pipe, loader(), out=str(tmp_path / "run"), callbacks=callbacks)

    with pytest.raises(pl.StageError):
        fit(0.1, Fail())
    with pytest.raises(
        pl.UserError, match=r"other options: --optimizer \(.*adam [0-9a-f]{8} there"
    ):
        fit(0.2)
    fit(0.1)


def test_again_it_goes_on_with_the_weights_there_are() -> None:
    pipe = pl.Pipeline(layers(), stages=2, optimizer=sgd)
    quiet(pipe, loader(), epochs=3)
    before = pipe.evaluate(loader())["loss"]
    quiet(pipe, loader(), epochs=1, max_steps=1)
    assert pipe.evaluate(loader())["loss"] == pytest.approx(before, rel=0.2)
    fresh = pl.Pipeline(layers(), stages=2, optimizer=sgd)
    quiet(fresh, loader(), epochs=1, max_steps=1)
    assert fresh.evaluate(loader())["loss"] > 1.2 * before


# What is wrong.


class Odd(Dataset[Any]):
    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return self.item


ONE = torch.zeros(6)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "neither": (lambda: pl.Pipeline(layers()), "give either stages, how many"),
    "both": (lambda: pl.Pipeline(layers(), stages=2, cut=["1"]), "give either stages, how many"),
    "argument": (lambda: pl.Pipeline(layers(), stages=2, windw=2), "no argument 'windw'"),
    "bound": (lambda: pl.Pipeline(layers(), stages=2, window=0), "--window 0: must be at least 1"),
    "choice": (lambda: pl.Pipeline(layers(), stages=2, edge="x"), "--edge x: choose one of auto"),
    "head": (lambda: pl.Pipeline(layers(), stages=2, head="liner"), "did you mean 'linear'"),
    "objective": (lambda: pl.Pipeline(layers(), stages=2, objective=3), "int is none: give"),  # type: ignore[arg-type]
    "sgr": (lambda: pl.SGR(fraction=2.0), "SGR: every=8, fraction=2.0"),
    "stages": (lambda: fit_of(stages=9), "--stages 9: this model has 4 units"),
    "cut": (lambda: fit_of(cut=["7"]), "'7'"),
    "combination": (
        lambda: pl.Pipeline(layers(), stages=2, objective=pl.SGR(form="exact"), autocast="bf16"),
        "--autocast rounds away what --reconcile exact",
    ),
    "model": (
        lambda: fit_of(nn.Linear(6, 3), stages=1),
        "Linear is no nn.Sequential: give pipelocal.Chain",
    ),
    "classes": (
        lambda: fit_of(stages=2, task=pl.tasks.Classification(classes=4)),
        "makes outputs [B, 3], but Classification of this data wants [B, 4]",
    ),
    "optimizer": (lambda: fit_of(stages=2, optimizer=lambda _: 3), "optimizer: it makes int"),
    "left out": (
        lambda: fit_of(stages=2, optimizer=lambda n: torch.optim.SGD([next(iter(n))[1]], 0.1)),
        "that of stage 1 leaves out 0.0.bias",
    ),
    "schedule": (
        lambda: fit_of(
            stages=2, schedule=lambda o, _: torch.optim.lr_scheduler.ReduceLROnPlateau(o)
        ),
        "schedule: it makes ReduceLROnPlateau",
    ),
    "no loader": (lambda: fit_with(1), "train: int is no data"),
    "distributed": (
        lambda: fit_with(loader(sampler=DistributedSampler(TensorDataset(X), 2, 0))),
        "a DistributedSampler deals the samples out",
    ),
    "items": (
        lambda: fit_with(DataLoader(Odd({"x": ONE}), 5)),
        "a sample is dict, with x: say which",
    ),
    "bytes": (lambda: fit_with(DataLoader(Odd((ONE.byte(), 1)), 5)), "samples of torch.uint8"),
    "targets": (
        lambda: fit_with(DataLoader(Odd((ONE, 0.5)), 5)),
        "the data's targets are torch.float32 [B], and",
    ),
    "shape": (
        lambda: fit_of(stages=2, input_shape=(7,)),
        "input_shape=(7,), and the data has (6,)",
    ),
    "dtype": (
        lambda: pl.Pipeline(pl.Chain.from_sequential(layers(), input_shape=(6,)), stages=2).fit(
            DataLoader(TensorDataset(X.long(), Y), 10), epochs=1
        ),
        "the model takes torch.float32, and the data has torch.int64",
    ),
    "evaluated": (
        lambda: trained().evaluate(DataLoader(TensorDataset(X[:, :5], Y), 10)),
        "made for samples [6], and the data has [5]: give samples of that shape, or",
    ),
    "texts": (
        lambda: of_texts().fit([(IDS[:4], IDS[:4], 1)] * 8, epochs=1),
        "and the data has [4]: pad all texts to one length, as a tokenizer does with "
        "padding='max_length', max_length=6, truncation=True",
    ),
    "a longer text": (
        lambda: of_texts().fit(loader_of([(IDS, IDS, 1), (IDS[:4], IDS[:4], 1)]), epochs=1),
        "of int64 [4], after ones of int64 [6]: give all the same shape and dtype, cropped or padded in "
        "the data set or the collate function (texts to one length, as a tokenizer does with padding=",
    ),
    "not padded": (
        lambda: of_texts().fit([(IDS, IDS, 1), (IDS[:4], IDS[:4], 1)], epochs=1),
        "that pads them to one length",
    ),
    "columns": (
        lambda: of_texts().fit([{}], columns=("mask", "ids", "label"), epochs=1),
        "the model takes its inputs in another order: give ('ids', 'mask', 'label')",
    ),
    "not known": (lambda: pl.Pipeline(layers(), stages=2).module(), "give Pipeline(input_shape=)"),
    "loss and task": (
        lambda: pl.Pipeline(layers(), stages=2, task=pl.tasks.NextToken(), loss=nn.NLLLoss()),
        "the task NextToken has a loss of its own",
    ),
    "smoothing": (
        lambda: pl.tasks.Classification(label_smoothing=0.1, loss_function=nn.NLLLoss()),
        "leave it out beside a loss_function",
    ),
}


def fit_of(net: nn.Module | None = None, **options: Any) -> Any:
    return quiet(pl.Pipeline(net or layers(), **options), loader())  # type: ignore[arg-type]


class Masked(nn.Module):
    """The mean of the tokens that count."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, given: tuple[Tensor, Tensor]) -> Tensor:
        ids, mask = given
        made: Tensor = self.table(ids) * mask[..., None]
        return made.mean(1)


def loader_of(samples: Any) -> DataLoader[Any]:
    return DataLoader(samples, batch_size=1)


def of_texts() -> pl.Pipeline:
    net = nn.Sequential(Masked(), nn.Linear(4, 4), nn.Linear(4, 2))
    chain = pl.Chain.from_sequential(net, inputs={"ids": IDS[None], "mask": IDS[None]})
    return pl.Pipeline(chain, stages=2)


def trained() -> pl.Pipeline:
    pipe = pl.Pipeline(layers(), stages=2)
    quiet(pipe, loader())
    return pipe


def fit_with(data: Any) -> Any:
    return quiet(pl.Pipeline(layers(), stages=2), data)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(case: str) -> None:
    run, text = WRONG[case]
    with pytest.raises(pl.UserError) as caught:
        run()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_figures_that_were_not_announced() -> None:
    class Silent(Rebuilding):
        figure_names = ("other",)

    with pytest.raises(
        pl.StageError, match=r"reports the figures \['error'\], and announced \['other'\]"
    ):
        quiet(pl.Pipeline(layers(), stages=2, objective=Silent, optimizer=sgd), loader())


# The scripts of the documentation, alone and on ranks.

ENDS = """
import hashlib, os
import torch
models = (pipe.module(), pipe.module(stage=1))
weights = [value for model in models for value in model.state_dict().values()]
digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights)).hexdigest()
found = pipe.evaluate(DataLoader(data, 100))
figures = found["loss"], found["accuracy"], found["ensemble_accuracy"]
line = " ".join(map(str, ("END", digest, *figures)))
print(f"{line}\\n", end="", flush=True)  # in one piece: ranks share the stream
"""


def script_of(document: str, about: str, folder: Path) -> tuple[Path, str]:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    (text,) = (block for block in blocks if about in block)
    script = folder / "script.py"
    script.write_text(text + ENDS)
    return script, text


def test_the_readme_s_script_alone_and_on_four_ranks(tmp_path: Path) -> None:
    script, text = script_of("README.md", "class Net", tmp_path)
    assert len(text.splitlines()) <= 25
    (alone,) = re.findall("END .*", python(script))
    assert re.findall("END .*", run_script(script, 4)) == [alone] * 4
    assert float(alone.split()[3]) > 0.8


def test_a_rule_of_one_s_own_alone_and_on_ranks(tmp_path: Path) -> None:
    """Under torchrun itself."""
    script, text = script_of("docs/python.md", "class SeesInput", tmp_path)
    assert len(text.splitlines()) <= 60
    (alone,) = re.findall("END .*", run_script(script))
    done = on_two_ranks(script)
    assert done.returncode == 0, done.stderr
    assert re.findall("END .*", done.stdout) == [alone] * 2


def test_ranks_with_other_weights_do_not_train_together(tmp_path: Path) -> None:
    """Each would train its stages of another network, and nobody would see it."""

    def body(rank: int) -> None:
        torch.manual_seed(rank)
        net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
        with pytest.raises(PipelocalError) as raised:
            quiet(pl.Pipeline(net, stages=2), loader(), epochs=1)
        assert "another model than on rank 0: its first weights" in str(raised.value)
        assert "with torch.manual_seed(...) before it" in str(raised.value)

    ranks = start(tmp_path, body, 2)
    assert ranks.wait() == [0, 0], ranks.output()


def on_two_ranks(script: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, "--nproc-per-node", "2", script.name],
        cwd=script.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_an_error_ends_every_rank_with_one_line(tmp_path: Path) -> None:
    """torch.distributed's own hook collects what an exception says, to show it behind that."""
    text = """
import pipelocal as pl, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
class Data(Dataset):
    def __len__(self): return 40
    def __getitem__(self, index):
        if index == 33: raise KeyError("sample 33 is missing")
        return torch.zeros(6), index % 3
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
pl.Pipeline(net, stages=2).fit(DataLoader(Data(), 10), epochs=2, progress=False)
"""
    script = tmp_path / "script.py"
    script.write_text(text)
    done = on_two_ranks(script)
    assert done.returncode == 1
    for rank in (0, 1):
        assert re.search(
            rf"pipelocal \(rank {rank}\): error: .*train: sample 33 failed \(KeyError: 'sample 33 ",
            done.stderr,
        )
    _, _, cause = done.stderr.rpartition("Root Cause")
    assert re.search(r"traceback : pipelocal \(rank \d\): error: .*sample 33 failed", cause), cause
