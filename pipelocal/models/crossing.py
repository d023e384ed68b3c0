"""Finds what passes over the cuts of a traced model, and leaves as little of it as can be.

Tensors with a first dimension of rows are passed on from unit to unit, up to the last that uses them. All
else is made where it is used: a size becomes a number, and what follows from sizes and constants, such as
positions, is computed anew; so is what is larger than the inputs that it follows from, such as a mask of
pairs of tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx

from pipelocal.errors import UserError
from pipelocal.models.examples import (
    ROWS,
    both,
    changed_by,
    failed,
    is_container,
    is_size,
    kind_of,
)
from pipelocal.models.nodes import drop_idle, floats, replace_input, row_bytes, takes_out

_RANDOM = ("rand", "normal", "bernoulli", "multinomial", "dropout", "poisson", "exponential")


class Cuts:
    """The cuts of a traced graph behind each unit but the last.

    Args:
        graph: it is changed.
        unit_of: unit of each node but the inputs; the output counts as part of the last unit. Nodes
            that are added to the graph are added to it.
        names: names of the units.
        given: the inputs, with their names.
        held: the modules and tensors that the graph refers to.
        state: names of all tensors of the model but constants.
    """

    def __init__(
        self,
        graph: fx.Graph,
        unit_of: dict[fx.Node, int],
        names: Sequence[str],
        given: Mapping[fx.Node, str],
        *,
        held: Mapping[str, Any],
        state: Set[str],
    ) -> None:
        self._graph = graph
        self._unit_of = unit_of
        self._names = names
        self._given = given
        self._held = held
        self._state = state

    def found(self) -> list[dict[fx.Node, str]]:
        """Return what each unit passes on, its own first, with names; for the last, the model's output.

        Raises:
            UserError: something cannot be passed on, or what a unit makes is not used.
        """
        self._take_apart()
        for node in list(reversed(self._graph.nodes)):
            self._make_where_used(node)
        drop_idle(self._graph, self._given)
        self._check_in_place()
        last = len(self._names) - 1
        (result,) = (node.args[0] for node in self._graph.nodes if node.op == "output")
        if result not in self._unit_of or self._home(result) != last:
            raise UserError(f"what unit '{self._names[last]}' makes is not used: leave it out")
        crossing = [self._behind(index) for index in range(last)]
        if any(len(alive) > 1 for alive in crossing):
            self._check_known()
        return [*crossing, {result: self._names[last]}]

    def _check_known(self) -> None:
        """Refuse to let several tensors cross where it is not known what the code does to them."""
        for node in self._graph.nodes:
            reason = failed(node)
            if reason is not None:
                inputs = " and ".join(self._given.values())
                raise UserError(
                    f"{self._said(node)} cannot be computed for two rows of {inputs} as they are said to be "
                    f"({reason}), so that it is not known what passes over the cuts: give input_shape=, "
                    f"input_dtype= or inputs= as the model takes them, and put what depends on values into a "
                    f"submodule"
                )

    def _home(self, node: fx.Node) -> int:
        return self._unit_of.get(node, -1)

    def _used_later(self, node: fx.Node) -> dict[int, list[fx.Node]]:
        """Return the users of a node in units behind its own, by unit."""
        later: dict[int, list[fx.Node]] = {}
        for user in node.users:
            if self._home(user) > self._home(node):
                later.setdefault(self._home(user), []).append(user)
        return dict(sorted(later.items()))

    def _behind(self, index: int) -> dict[fx.Node, str]:
        alive = [
            node
            for node in self._graph.nodes
            if self._home(node) <= index
            and any(self._home(user) > index for user in node.users)
            and not (node.op == "placeholder" and node not in self._given)
        ]
        name = self._names[index]
        own = [node for node in alive if self._home(node) == index and self._made_by(node, name)]
        if not own:
            raise UserError(f"what unit '{name}' makes is not used: leave it out")
        main = next((node for node in own if floats(node)), own[0])
        others = {node: self._name(node) for node in alive if node is not main}
        return {main: name, **others}

    def _made_by(self, node: fx.Node, name: str) -> bool:
        """Return whether a node follows from a module's output, within the module's unit."""
        if node.op == "call_module" and node.target == name:
            return True
        near = (one for one in node.all_input_nodes if self._home(one) == self._home(node))
        return any(self._made_by(one, name) for one in near)

    def _name(self, node: fx.Node) -> str:
        if node in self._given:
            return self._given[node]
        if node.op == "call_module":
            return str(node.target)
        if takes_out(node):
            return f"{self._name(node.all_input_nodes[0])}[{node.args[1]}]"
        before = [one for one in node.all_input_nodes if kind_of(one, "") is not None]
        while before and before[0] not in self._given and before[0].op != "call_module":
            before = [one for one in before[0].all_input_nodes if kind_of(one, "") is not None]
        return f"{self._name(before[0])}.{node.name}" if before else node.name

    def _take_apart(self) -> None:
        """Pass on the elements of a tuple, and put the tuple together where it is used."""
        for node in list(self._graph.nodes):
            later = [user for users in self._used_later(node).values() for user in users]
            if not later or not is_container(node) or node.op == "placeholder":
                continue
            value = (both(node) or ((), ()))[0]
            keys: Sequence[Any] = list(value) if isinstance(value, dict) else range(len(value))
            parts = [self._part(node, key) for key in reversed(keys)][::-1]
            whole: Any = dict(zip(keys, parts, strict=True)) if isinstance(value, dict) else parts
            if isinstance(value, tuple):
                whole = tuple(parts)
            for user in later:
                replace_input(user, node, whole)

    def _part(self, node: fx.Node, key: Any) -> fx.Node:
        with self._graph.inserting_after(node):
            part = self._graph.call_function(operator.getitem, (node, key))
        part.meta["examples"] = tuple(value[key] for value in both(node) or ())
        self._unit_of[part] = self._home(node)
        return part

    def _make_where_used(self, node: fx.Node) -> None:
        """Let each unit that uses a node behind its own make it itself, if it cannot or need not be sent."""
        later = self._used_later(node)
        if is_size(node) and self._asks_far(node):
            home = self._home(node)
            later = {home: [one for one in node.users if self._home(one) == home], **later}
        if not any(later.values()) or (node.op == "placeholder" and node not in self._given):
            return
        if is_size(node):
            value = both(node) or (None, None)
            for unit, users in later.items():
                if users:
                    self._write_out(node, value, unit, users)
        elif both(node) is not None and kind_of(node, "") is None:
            self._check_shared(node, later)
            if self._sources(node, anything=True) is None:
                raise UserError(self._not_rows(node, later))
            self._copy(node, later)
        elif node.op != "call_module" and node not in self._given:
            sources = self._sources(node, anything=False)
            if sources is not None and self._more(sources, max(later)) <= row_bytes(node):
                self._copy(node, later)
        if not node.users and node not in self._given:
            self._graph.erase_node(node)
            self._unit_of.pop(node, None)

    def _asks_far(self, node: fx.Node) -> bool:
        """Return whether a node asks for the size of what the unit might otherwise not be given."""
        home = self._home(node)
        return home > 0 and any(
            self._home(one) < home
            and not (self._home(one) == home - 1 and self._made_by(one, self._names[home - 1]))
            for one in node.all_input_nodes
        )

    def _more(self, sources: Set[fx.Node], unit: int) -> int:
        """Return the bytes of a row of what would have to be passed on for a unit, and is not anyway."""
        return sum(
            row_bytes(one)
            for one in sources
            if max((self._home(user) for user in one.users), default=-1) < unit
        )

    def _write_out(
        self, node: fx.Node, values: tuple[Any, Any], unit: int, users: Sequence[fx.Node]
    ) -> None:
        """Replace a size by numbers, of which the number of rows is that of the unit's input."""
        made: dict[str, fx.Node] = {}
        before: fx.Node = next(
            one for one in self._graph.find_nodes(op="call_module", target=self._names[unit - 1])
        )
        first = min(users, key=list(self._graph.nodes).index)

        def input_of_unit() -> fx.Node:
            if both(before) is None or not is_container(before):
                return before
            parts = [one for one in before.users if takes_out(one)]
            return next((one for one in parts if one.args[1] == 0), parts[0])

        def written(one: Any, two: Any) -> Any:
            if isinstance(one, (tuple, list)) and isinstance(two, type(one)):
                return tuple(written(*pair) for pair in zip(one, two, strict=True))
            if isinstance(one, torch.device):
                return new("device", getattr, (input_of_unit(), "device"))
            if str(one) == str(two):
                return one
            if isinstance(one, int) and isinstance(two, int) and one * ROWS[1] == two * ROWS[0]:
                rows = new("rows", Tensor.size, (input_of_unit(), 0))
                times = one // ROWS[0]
                return rows if times == 1 else new(f"rows{times}", operator.mul, (rows, times))
            raise UserError(
                f"{self._said(node)} depends on the number of rows and is used by unit "
                f"'{self._names[unit]}' as well, behind a cut: compute it there"
            )

        def new(key: str, target: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
            if key not in made:
                with self._graph.inserting_before(first):
                    made[key] = self._graph.call_function(target, args)
                self._unit_of[made[key]] = unit
            return made[key]

        number = written(*values)
        for user in users:
            replace_input(user, node, number)

    def _copy(self, node: fx.Node, later: Mapping[int, Sequence[fx.Node]]) -> None:
        order = list(self._graph.nodes)
        for unit, users in later.items():
            with self._graph.inserting_before(min(users, key=order.index)):
                own = self._graph.node_copy(node, lambda one: one)
            self._unit_of[own] = unit
            for user in users:
                user.replace_input_with(node, own)

    def _sources(self, node: fx.Node, *, anything: bool) -> set[fx.Node] | None:
        """Return the tensors of rows from which a node can be computed anew; None if it cannot.

        Args:
            node: the node.
            anything: whether these may be all that can be passed on, instead of the inputs alone.
        """
        if node in self._given:
            return {node}
        if is_size(node):
            return set()
        if node.op == "get_attr":
            return None if str(node.target) in self._state else set()
        code = node.op in ("call_function", "call_method")
        if changed_by(node) or not (code or (anything and self._is_constant(node))):
            return None
        name = str(getattr(node.target, "__name__", node.target))
        if name.startswith(_RANDOM) or both(node) is None:
            return None
        found: set[fx.Node] = set()
        for before in node.all_input_nodes:
            if anything and kind_of(before, "") is not None:
                found.add(before)
                continue
            sources = self._sources(before, anything=anything)
            if sources is None:
                return None
            found |= sources
        return found

    def _is_constant(self, node: fx.Node) -> bool:
        """Return whether a node calls a module without state, such as one that makes a table of positions."""
        if node.op != "call_module" or str(node.target) in self._names:
            return False
        module = self._held[str(node.target)]
        names = [n for n, _ in (*module.named_parameters(), *module.named_buffers())]
        return not any(f"{node.target}.{name}" in self._state for name in names)

    def _check_shared(self, node: fx.Node, later: Mapping[int, Sequence[fx.Node]]) -> None:
        if node.op == "get_attr" and str(node.target) in self._state:
            first, second = self._home(node), next(iter(later))
            raise UserError(
                f"units '{self._names[first]}' and '{self._names[second]}' share '{node.target}', which "
                f"stages cannot: put both into one unit, or register a constant with persistent=False"
            )

    def _check_in_place(self) -> None:
        """Refuse a change in place of what is used again where the change would not be seen."""
        order = {node: place for place, node in enumerate(self._graph.nodes)}
        for node in self._graph.nodes:
            for changed in changed_by(node):
                again = [
                    user
                    for user in changed.users
                    if order[user] > order[node]
                    and (self._home(user) > self._home(node) or node.op == "call_module")
                ]
                same = self._home(changed) == self._home(node) and node.op != "call_module"
                if again and not same and changed.op != "get_attr":
                    raise UserError(
                        f"'{self._name(node)}' changes {self._said(changed)} in place, which "
                        f"'{self._names[self._home(again[0])]}' uses again: write it without the change "
                        f"(inplace=False)"
                    )

    def _not_rows(self, node: fx.Node, later: Mapping[int, Sequence[fx.Node]]) -> str:
        index = max(self._home(node), 0)
        value = (both(node) or (None, None))[0]
        what = list(value.shape[1:]) if isinstance(value, Tensor) else type(value).__name__
        users = " and ".join(f"'{self._names[unit]}'" for unit in later)
        reason = (
            f"a tensor whose first dimension is not that of rows (its shape is {list(value.shape)} for "
            f"{ROWS[0]} rows)"
            if isinstance(value, Tensor)
            else f"a {what}"
        )
        return (
            f"{self._said(node)} is used by {users}, behind the cut after '{self._names[index]}', but "
            f"it is {reason}: units pass on tensors [rows, ...]; make it so, or put what uses it into one "
            f"unit"
        )

    def _said(self, node: fx.Node) -> str:
        """Describe a node in words that the model's author knows."""
        if node in self._given:
            return f"the input '{self._given[node]}'"
        if node.op == "call_module":
            return f"the output of '{node.target}'"
        if node.op == "get_attr":
            return f"'{node.target}'"
        seen = [node]  # the tracer made up this name: say what it follows from
        for one in seen:
            if (one is node or one.op in ("call_function", "call_method")) and (
                one not in self._given
            ):
                seen += [before for before in one.all_input_nodes if before not in seen]
        code = ("call_function", "call_method")
        sources = [self._said(one) for one in seen if one in self._given or one.op not in code]
        return f"'{node.name}' (of {', '.join(sources)})" if sources else f"'{node.name}'"
