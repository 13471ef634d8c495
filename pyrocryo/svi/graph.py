"""Tracing: Python runs once, and leaves a graph of tensor operations that runs without it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["Graph"]

SAME = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}
LIKE = {
    torch.ops.aten.randn_like.default: torch.ops.aten.randn.default,
    torch.ops.aten.rand_like.default: torch.ops.aten.rand.default,
}
COPIES = {torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default}


class Graph:
    """A traced function of tensors: the same numbers, without Pyro, autograd or modules.

    Random numbers are drawn afresh in each call. Shapes are those of the example.

    Args:
        call: The function.
        inputs: An example of its arguments.

    Raises:
        ValueError: If the shape of a tensor on the way depends on values.
        Exception: Whatever the function raises when it asks for a value while being traced.
    """

    def __init__(self, call: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> None:
        # shapes are noted as fake tensors: of one mode, else make_fx makes one for each operation
        with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
            self._module = make_fx(call)(*inputs)
        for node in self._module.graph.nodes:
            if _depends_on_values(node):
                raise ValueError(
                    f"the shape of what {node.target.overloadpacket.__name__} returns depends on "
                    "values (a boolean mask, unique, nonzero)"
                )
        _fold(self._module)
        self._compile()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """What the function returns."""
        with torch.no_grad():
            return self._forward(*inputs)

    def compile(self, *inputs: Tensor) -> None:
        """Fuses operations from here on (TorchInductor); takes some ten seconds, now.

        Random numbers stay those of the operations that draw them.

        Args:
            *inputs: An example of the arguments.

        Raises:
            Exception: Whatever the compiler raises, where it or what it needs is missing.
        """
        options = {"fallback_random": True}
        checks = Distribution._validate_args  # the compiler, once imported, turns them off
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own insides
            try:
                compiled = torch.compile(
                    self._module, fullgraph=True, dynamic=False, options=options
                )
                compiled(*inputs)
            finally:
                Distribution.set_default_validate_args(checks)
        self._forward = compiled

    def uncompile(self) -> None:
        """Back to one operation after another."""
        self._forward = self._module.forward

    @property
    def peak(self) -> int:
        """Bytes that live at the same time on the way, at most, without the inputs."""
        return _peak(self._module.graph)

    def draws(self) -> list[Draw] | None:
        """How it draws its random numbers, in order; None if that depends on other numbers."""
        draws = [Draw.of(node) for node in _random(self._module.graph)]
        return None if None in draws else draws

    def lift(self, draws: Sequence[Draw]) -> None:
        """Takes random numbers as further inputs instead: ``draws`` with a leading axis of seeds.

        Raises:
            ValueError: If it does not draw just these.
        """
        nodes = list(_random(self._module.graph))
        shapes = [tuple(node.meta["val"].shape)[1:] for node in nodes]
        if shapes != [draw.shape for draw in draws]:
            raise ValueError(f"random numbers of shapes {shapes}, one seed alone draws {draws}")
        after = [n for n in self._module.graph.nodes if n.op == "placeholder"][-1].next
        for k, node in enumerate(nodes):
            with self._module.graph.inserting_before(after):
                given = self._module.graph.placeholder(f"noise_{k}")
            given.meta = dict(node.meta)
            node.replace_all_uses_with(given)
            self._module.graph.erase_node(node)
        self._compile()

    def _compile(self) -> None:
        self._module.graph.eliminate_dead_code()
        self._module.recompile()
        self.uncompile()


class Draw:
    """One operation that draws random numbers, of a known shape.

    Args:
        call: The operation.
        args: Its arguments.
        kwargs: Its keywords.
        like: The tensor that comes out, for its shape and type.
        in_place: Whether it fills a tensor.
    """

    def __init__(self, call: Any, args: tuple, kwargs: dict, like: Any, in_place: bool) -> None:
        self.call, self.args, self.kwargs, self.in_place = call, args, kwargs, in_place
        self.shape, self.dtype = tuple(like.shape), like.dtype

    @classmethod
    def of(cls, node: fx.Node) -> Draw | None:
        """That of a node of a graph, or None if it needs other tensors' values."""
        if node.target in LIKE:
            like = node.meta["val"]
            return cls(LIKE[node.target], (list(like.shape),), {}, like, False)
        in_place = _mutates(node)
        args = node.args[1:] if in_place else node.args
        if any(isinstance(arg, fx.Node) for arg in [*args, *node.kwargs.values()]):
            return None
        return cls(node.target, args, dict(node.kwargs), node.meta["val"], in_place)

    def __call__(self, generator: torch.Generator, out: Tensor) -> None:
        """Draws into ``out``: what the operation itself draws after this generator."""
        if self.in_place:
            self.call(out, *self.args, **self.kwargs, generator=generator)
            return
        name = self.call.overloadpacket.__name__
        drawn = getattr(torch, name)(
            *self.args, generator=generator, dtype=out.dtype, device=out.device
        )
        out.copy_(drawn)

    def __repr__(self) -> str:
        return f"{self.call.overloadpacket.__name__}{list(self.shape)}"


def _random(graph: fx.Graph) -> Iterator[fx.Node]:
    for node in graph.nodes:
        if node.op == "call_function" and torch.Tag.nondeterministic_seeded in _tags(node):
            yield node


def _tags(node: fx.Node) -> Sequence[torch.Tag]:
    return getattr(node.target, "tags", ())


def _depends_on_values(node: fx.Node) -> bool:
    """Whether the shape of the result does."""
    if node.target is torch.ops.aten.index.Tensor:  # by numbers it is known, by a mask it is not
        given = [arg.meta["val"] for arg in node.args[1] if isinstance(arg, fx.Node)]
        return any(value.dtype in (torch.bool, torch.uint8) for value in given)
    return torch.Tag.dynamic_output_shape in _tags(node)


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.is_mutable)


def _written(node: fx.Node) -> list[fx.Node]:
    """The arguments that an operation writes to."""
    found: list[fx.Node] = []
    for n, argument in enumerate(node.target._schema.arguments):
        given = node.args[n] if n < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            several = given if isinstance(given, (list, tuple)) else [given]
            found += [one for one in several if isinstance(one, fx.Node)]
    return found


def _fold(module: fx.GraphModule) -> None:
    """Computes once what does not depend on the inputs, and drops what changes nothing."""
    graph = module.graph
    fixed = _untouched(graph)
    values: dict[fx.Node, Any] = {}
    for node in list(graph.nodes):
        if node.target in SAME or (node.target in COPIES and node.args[0] in fixed):
            node.replace_all_uses_with(node.args[0])
        elif node.op == "get_attr" and node in fixed:
            values[node] = getattr(module, node.target)
        elif node in fixed:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    for n, (node, value) in enumerate(values.items()):
        if node.op == "get_attr" or not isinstance(value, Tensor):
            continue
        if any(user not in values for user in node.users):
            module.register_buffer(f"fixed_{n}", value.clone() if value._is_view() else value)
            with graph.inserting_before(node):
                held = graph.get_attr(f"fixed_{n}")
            held.meta = dict(node.meta)
            node.replace_all_uses_with(held)


def _untouched(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that neither depend on inputs or chance, nor share memory with what is written to."""
    written: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and _mutates(node):
            behind = _written(node)
            while behind:
                one = behind.pop()
                if one not in written:
                    written.add(one)
                    behind += one.all_input_nodes
    fixed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" and node not in written:
            fixed.add(node)
        elif (
            node.op == "call_function"
            and node not in written
            and not _mutates(node)
            and torch.Tag.nondeterministic_seeded not in _tags(node)
            and all(arg in fixed for arg in node.all_input_nodes)
        ):
            fixed.add(node)
    return fixed


def _peak(graph: fx.Graph) -> int:
    """Bytes alive at once, at most: outputs of operations from their birth to their last use."""
    owner: dict[fx.Node, fx.Node] = {}  # whose memory a view shows
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        shown = _shown(node)
        owner[node] = owner[shown] if shown is not None else node
        for arg in node.all_input_nodes:
            last[owner[arg]] = node
    ends: dict[fx.Node, list[fx.Node]] = {}
    for node, end in last.items():
        ends.setdefault(end, []).append(node)
    alive = most = 0
    for node in graph.nodes:
        if node.op == "call_function" and owner[node] is node:
            alive += _bytes(node)
            most = max(most, alive)
        alive -= sum(_bytes(n) for n in ends.get(node, ()) if n.op == "call_function")
    return most


def _shown(node: fx.Node) -> fx.Node | None:
    """The argument whose memory the result of a node shares."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # an item of several results
        return node.args[0] if node.op == "call_function" else None
    for given, argument in zip(node.args, schema.arguments, strict=False):
        if argument.alias_info is not None and isinstance(given, fx.Node):
            return given
    return None


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
