"""No unit is dropped or doubled, and no stage is much longer than another."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipelocal.errors import UserError
from pipelocal.models import Chain, Unit
from pipelocal.partition import Cut, by_count, even_blocks


def _chain(units: int) -> Chain:
    links = [Unit(name=f"u{i}", build=partial(nn.Linear, 2, 2)) for i in range(units)]
    classifier = Unit(name="out", build=partial(nn.Linear, 2, 2))
    return Chain(links, classifier=classifier, input_shape=(2,), classes=2)


@given(st.integers(0, 300), st.integers(1, 80))
def test_even_blocks(items: int, blocks: int) -> None:
    ranges = even_blocks(items, blocks)
    assert len(ranges) == blocks
    assert [i for block in ranges for i in block] == list(range(items))
    sizes = [len(block) for block in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(st.data())
def test_by_count_holds_every_unit_once(data: st.DataObject) -> None:
    units = data.draw(st.integers(1, 60))
    stages = data.draw(st.integers(1, units))
    chain = _chain(units)
    cuts = by_count(chain, stages)
    assert len(cuts) == stages
    names = [unit.name for cut in cuts for unit in chain.units[cut.start : cut.stop]]
    assert names == [unit.name for unit in chain.units]
    sizes = [cut.stop - cut.start for cut in cuts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


def test_by_count_where_it_does_not_come_out_even() -> None:
    cuts = by_count(_chain(7), 3)
    assert cuts == [Cut(start=0, stop=3), Cut(start=3, stop=5), Cut(start=5, stop=7)]


def test_cut_modules_are_the_chain_s() -> None:
    chain = _chain(7)
    names = [
        name
        for cut in by_count(chain, 4)
        for name, _ in chain.build(cut.start, cut.stop, seed=0).named_children()
    ]
    assert names == [f"u{i}" for i in range(7)]


@pytest.mark.parametrize("stages", [-1, 0, 6])
def test_by_count_refuses(stages: int) -> None:
    with pytest.raises(UserError) as caught:
        by_count(_chain(5), stages)
    assert str(caught.value) == (
        f"--stages {stages}: this model has 5 units that can be stages of their own, "
        f"so choose from 1 to 5"
    )


def test_description() -> None:
    chain = _chain(5)
    assert Cut(start=1, stop=4).describe(chain) == "u1..u3"
    assert Cut(start=4, stop=5).describe(chain) == "u4"
