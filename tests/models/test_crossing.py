"""What the code between the units leaves to cross a cut, and what each unit makes for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelocal.errors import UserError
from pipelocal.models import Chain
from tests.models.several_tensors import Encoder
from tests.models.test_several_tensors import assert_is_the_model
from tests.models.test_traced import Parts


def check(forward: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...] = (4,)) -> Chain:
    torch.manual_seed(0)
    model = Parts(forward)
    chain = Chain.from_module(model, units=["a", "b", "c", "out"], input_shape=shape)
    assert_is_the_model(model, chain, torch.randn(4, *shape))
    return chain.tried()[0]


def test_sizes_become_numbers_where_they_are_used() -> None:
    """Also the number of rows, which is that of the unit's own input."""

    def forward(m: Any, x: Tensor) -> Tensor:
        rows, *rest = x.shape
        length = x.size(1)
        x = m.b(m.a(x).reshape(-1, 4))
        x = m.c(x.view(rows, *rest) if len(rest) == 2 and length > 2 else x)
        return m.out(x.reshape(rows * length, 4)).view(rows, length, 5)  # type: ignore[no-any-return]

    assert check(forward, (3, 4)).crossing[1][0].shape == (3, 4)

    def shaped(m: Any, x: Tensor) -> Tensor:
        rows, length = x.shape[:2]
        x = m.c(m.b(m.a(x)) + torch.arange(length, device=x.device)[:, None])
        return m.out(x.reshape(rows * length, 4)).view(rows, length, 5)  # type: ignore[no-any-return]

    assert {len(kinds) for kinds in check(shaped, (3, 4)).crossing} == {1}


def test_constants_are_made_by_each_unit_that_uses_them() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        steps = torch.arange(4, dtype=x.dtype, device=x.device)
        x = m.b(m.a(x) + steps)
        return m.out(m.c(x * steps) - steps)  # type: ignore[no-any-return]

    assert {len(kinds) for kinds in check(forward).crossing} == {1}


def test_a_sum_over_rows_is_computed_where_it_is_used() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        mean = m.a(x).mean(0)
        return m.out(m.c(m.b(x)) + mean)  # type: ignore[no-any-return]

    chain = check(forward)
    assert [kind.name for kind in chain.crossing[1]] == ["b", "a"]


def test_an_expression_is_passed_on_once() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        kept = torch.tanh(m.a(x))
        return m.out(m.c(m.b(kept) + kept) * kept)  # type: ignore[no-any-return]

    assert [kind.name for kind in check(forward).crossing[1]] == ["b", "a.tanh"]


def test_a_module_s_list_of_results_is_taken_apart() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.one(x), self.two(x)]

    class Merge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.merge = nn.Linear(10, 4)

        def forward(self, parts: list[Tensor]) -> Tensor:
            return self.merge(torch.cat(parts, -1))  # type: ignore[no-any-return]

    model = Parts(lambda m, x: m.out(m.c(m.b(m.a(x)))))
    model.b, model.c = Pyramid(), Merge()  # type: ignore[assignment]
    chain = Chain.from_module(model, units=["a", "b", "c", "out"], input_shape=(4,))
    assert_is_the_model(model, chain, torch.randn(4, 4))
    assert [kind.shape for kind in chain.tried()[0].crossing[1]] == [(4,), (6,)]


def test_what_is_no_tensor_of_rows_is_refused_by_name() -> None:
    class Turned(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).t()

    model = Parts(lambda m, x: m.out(m.c(m.b(m.a(x))).t()))
    model.b, model.c = Turned(4, 4), nn.Identity()  # type: ignore[assignment]
    with pytest.raises(UserError) as caught:
        Chain.from_module(model, units=["a", "b", "c", "out"], input_shape=(4,))
    assert str(caught.value) == (
        "the output of 'b' is used by 'c', behind the cut after 'b', but it is a tensor whose first "
        "dimension is not that of rows (its shape is [4, 2] for 2 rows): units pass on tensors [rows, ...]; "
        "make it so, or put what uses it into one unit"
    )


@pytest.mark.parametrize("module", [True, False])
def test_a_change_in_place_of_a_skip_is_refused(module: bool) -> None:
    """The unit would change a copy of its own, and the skip would stay as it was."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        y = m.b(m.act(x) if module else F.relu(x, inplace=True))
        return m.out(m.c(y) + x)  # type: ignore[no-any-return]

    model = Parts(forward)
    model.act = nn.ReLU(inplace=True)
    with pytest.raises(
        UserError, match=r"changes the output of 'a' in place, which 'out' uses again"
    ):
        Chain.from_module(model, units=["a", "b", "c", "out"], input_shape=(4,))


def test_a_unit_that_changes_its_input_works_on_a_copy_of_that_alone() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        kept = m.a(x)
        x = m.b(kept)
        x += 1.0
        return m.out(m.c(x) + kept)  # type: ignore[no-any-return]

    chain = check(forward)
    assert chain.units[2].in_place == (0,)
    given = (torch.zeros(2, 4), torch.zeros(2, 4))
    out = chain.build(2, 3, seed=0)(given)
    assert torch.equal(given[0], torch.zeros(2, 4))
    assert out[1] is given[1]


# What must not be taken for constant.


def refused(forward: Callable[[Any, Tensor], Tensor], **further: Any) -> str:
    model = Parts(forward)
    model.register_buffer("table", torch.ones(4), persistent=False)
    with pytest.raises(UserError) as caught:
        Chain.from_module(
            model, units=["a", "b", "c", "out"], **({"input_shape": (4,)} | further)
        ).tried()
    return str(caught.value)


def test_what_follows_from_values_is_no_size() -> None:
    """A number that was read from a tensor of the example would be the same for every batch."""

    def forward(m: Any, x: Tensor) -> Tensor:
        most = (x > 0).sum().item()
        x = m.b(m.a(x))
        return m.out(m.c(x * most) * most)  # type: ignore[no-any-return]

    assert "'item' (of the input 'x') cannot be computed for two rows of x" in refused(forward)

    def branch(m: Any, x: Tensor) -> Tensor:
        x = m.b(m.a(x))
        return m.out(m.c(x if x.sum().item() > 0 else -x))  # type: ignore[no-any-return]

    assert "cannot be traced (symbolically traced variables" in refused(branch)


def test_a_buffer_that_is_written_is_no_constant() -> None:
    def constant(m: Any, x: Tensor) -> Tensor:
        return m.out(m.c(m.b(m.a(x) + m.table)) * m.table)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Parts(constant)
    model.register_buffer("table", torch.arange(4.0), persistent=False)
    chain = Chain.from_module(model, units=["a", "b", "c", "out"], input_shape=(4,))
    assert_is_the_model(model, chain, torch.randn(3, 4))
    assert {len(kinds) for kinds in chain.tried()[0].crossing} == {1}

    def written(m: Any, x: Tensor) -> Tensor:
        x = m.b(m.a(x) + m.table)
        m.table.add_(1)
        return m.out(m.c(x) * m.table)  # type: ignore[no-any-return]

    assert "share 'table', which stages cannot" in refused(written)

    class Counts(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.count: Tensor
            self.register_buffer("count", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.count = self.count + 1
            return super().forward(x)

    model = Parts(lambda m, x: m.out(m.c(m.b(m.a(x)) * m.a.count)))
    model.a = Counts()
    with pytest.raises(UserError, match="units 'a' and 'c' share a parameter or buffer"):
        Chain.from_module(model, units=["a", "b", "c", "out"], input_shape=(4,))


def test_a_table_made_by_a_module_without_state_is_made_by_each_unit() -> None:
    """As the angles of rotary positions, which have no dimension of rows."""

    class Angles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.speed: Tensor
            self.register_buffer("speed", torch.rand(4), persistent=False)

        def forward(self, places: Tensor) -> Tensor:
            return places[:, None] * self.speed

    def forward(m: Any, x: Tensor) -> Tensor:
        angles = m.angles(torch.arange(x.shape[1], device=x.device)).cos()
        return m.out(m.c(m.b(m.a(x) + angles) * angles) + angles)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Parts(forward)
    model.angles = Angles()
    chain = Chain.from_module(model, units=["a", "b", "c", "out"], input_shape=(3, 4))
    assert_is_the_model(model, chain, torch.randn(2, 3, 4))
    assert {len(kinds) for kinds in chain.tried()[0].crossing} == {1}


def test_inputs_that_the_model_does_not_take_are_told_where_several_tensors_cross() -> None:
    ids = torch.zeros(2, 9)
    with pytest.raises(
        UserError, match="the output of 'embed' cannot be computed for two rows of ids"
    ):
        Chain.from_module(
            Encoder(), units=Encoder.UNITS, inputs={"ids": ids, "attention_mask": ids}
        )


def test_what_is_computed_anew_is_not_computed_of_what_was_changed() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        pairs = x[:, None] - x[:, :, None]  # larger than the input
        y = m.a(x.mul_(2.0))
        return m.out(m.c(m.b(y) + pairs.sum(1)) + pairs.sum(2))  # type: ignore[no-any-return]

    assert "changes the input 'x' in place, which 'c' uses again" in refused(forward)
