"""Language models from text to run folder: the same bits over ranks, and real English learnt."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from pipelocal import cli
from tests.launching import launch, run_ranks
from tests.test_transparency import assert_same_bits, train_alone


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English that every Python brings along: the help on its own language."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(topics[name] for name in sorted(topics)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(book: Path) -> Path:
    """The first 2000 bytes of it."""
    path = book.parent / "page.txt"
    path.write_bytes(book.read_bytes()[:2000])
    return path


def _arguments(page: Path, model: str, objective: str, *more: str) -> list[str]:
    arguments = ["--model", model, "--data", "text16", "--data-root", str(page)]
    arguments += ["--objective", objective, "--batch-size", "10", "--lr", "0.001"]
    return [*arguments, "--optimizer", "adamw", "--stages", "4", *more]


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ("gpt", "greedy"),
        pytest.param("gpt-math", "sgr", marks=pytest.mark.slow),
        ("lstm", "sgr"),
    ],
)
def test_over_ranks_equals_one_process(
    tmp_path: Path, page: Path, model: str, objective: str
) -> None:
    """111 windows in batches of 10: the last of an epoch is not full; a second one is begun."""
    arguments = _arguments(page, model, objective, "--epochs", "2", "--max-steps", "14")
    alone = train_alone(arguments, tmp_path / "alone")
    for size in (2, 4):
        out = tmp_path / f"ranks-{size}"
        run_ranks(tmp_path / f"log-{size}", ["train", *arguments, "--out", str(out)], size)
        assert_same_bits(alone, out)


def test_losses_are_nats_per_token_and_the_ensemble_votes(tmp_path: Path, page: Path) -> None:
    """The figures of a run that hardly learns are those of a guess among 256 bytes."""
    out = train_alone(
        _arguments(page, "gpt", "greedy", "--lr", "1e-9", "--max-steps", "1", "--votes", "on"),
        tmp_path / "run",
    )
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = {r["stage"]: r["loss"] for r in records if r["event"] == "evaluate"}
    assert len(losses) == 4
    assert abs(losses[4] - math.log(256)) < 0.15
    summary = json.loads((out / "summary.json").read_text())
    assert 0 <= summary["ensemble_accuracy"] < 0.2


def test_evaluate_and_export(
    tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _arguments(page, "gru", "greedy", "--max-steps", "3", "--votes", "on")
    out = train_alone(arguments, tmp_path / "run")
    summary = json.loads((out / "summary.json").read_text())
    capsys.readouterr()
    assert cli.run(["evaluate", str(out), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["eval_accuracy"] == summary["eval_accuracy"]
    assert again["ensemble_accuracy"] == summary["ensemble_accuracy"]
    file = tmp_path / "model.pt"
    assert cli.run(["export", str(out), "--to", str(file)]) == 0
    state = torch.load(file, weights_only=True)
    assert state["embed.weight"].shape == state["classifier.linear.weight"].shape == (256, 128)


@pytest.mark.slow
def test_real_english_is_learnt_by_every_stage(tmp_path: Path, book: Path) -> None:
    """Far below log(256) = 5.55 nats, the loss of a guess, at every stage's head."""
    text = tmp_path / "text.txt"
    text.write_bytes(book.read_bytes()[:30_000])
    arguments = _arguments(text, "gpt", "greedy", "--data", "text32", "--lr", "0.003")
    arguments += ["--batch-size", "16", "--max-steps", "40"]
    out = train_alone(arguments, tmp_path / "run")
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if r["event"] == "evaluate"]
    assert len(losses) == 4
    assert max(losses) < 3.6, losses


BAD: dict[str, tuple[list[str], str]] = {
    "attention twice": (
        ["--objective", "sgr", "--reconcile", "exact"],
        "stage 2: unit 'block2' cannot be differentiated twice.*SDPBackend.MATH",
    ),
    "images for a language model": (["--data", "digits"], "model 'gpt' takes sequences of tokens"),
    "text for an image model": (
        ["--model", "resnet8"],
        "model 'resnet8' takes images or vectors, but data set 'text16' holds tokens: choose.*gpt",
    ),
    "a head for images": (["--head", "conv"], "head 'conv' wants features .*--head linear"),
    "a classifier for whole samples": (
        ["--model", "OWN", "--stages", "1"],
        r"the classifier 'out' makes outputs \[B, 256\], but NextToken .*\[B, 16, 256\]",
    ),
    "no text": (["--data-root", "nowhere"], "nowhere does not exist"),
    "little text": (["--data", "text512"], "2000 bytes.*needs 5130"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_ends_in_one_line(
    case: str, tmp_path: Path, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from collections import OrderedDict\n"
        "from torch import nn\n"
        "def net(shape, classes):\n"
        "    flat = nn.Sequential(nn.Embedding(classes, 4), nn.Flatten())\n"
        "    out = nn.Linear(4 * shape[0], classes)\n"
        "    return nn.Sequential(OrderedDict(body=flat, out=out))\n"
    )
    options, said = BAD[case]
    options = [f"{own}:net" if option == "OWN" else option for option in options]
    arguments = _arguments(page, "gpt", "greedy", "--max-steps", "2", *options)
    code = cli.run(["train", *arguments, "--plain", "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert code == cli.USER_ERROR, error
    assert error.count("\n") == 1, error
    assert re.search(said, error), error


def test_attention_twice_is_refused_on_every_rank(tmp_path: Path, page: Path) -> None:
    arguments = ["train", *_arguments(page, "gpt", "sgr"), "--out", str(tmp_path / "run")]
    ranks = launch(tmp_path / "log", [*arguments, "--reconcile", "exact"], 4)
    codes = ranks.wait()
    assert cli.USER_ERROR in codes, ranks.output()
    assert 0 not in codes
    assert all("cannot be differentiated twice" in ranks.output(rank) for rank in range(4))
