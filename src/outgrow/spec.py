"""How a loss or a rule is written in one line: ``kd``, ``kd(4)``, ``dkd(beta=6)``, ``kd + 0.8*crd(dim=64)``.

The command line, configuration files and ``Objective(loss=...)`` share this small grammar. It is
Python's own call syntax with literal arguments, read by :mod:`ast` and never evaluated. Arguments without
a name go to the constructor's parameters in order.
"""

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from types import NoneType
from typing import NamedTuple, TypeVar, get_args

from torch import Tensor

T = TypeVar("T")


class Call(NamedTuple):
    """One constructor call, and the weight of its result."""

    name: str
    arguments: dict[str, object]
    weight: float = 1.0
    positional: tuple[object, ...] = ()
    """Arguments without a name; :func:`bind` finds their names."""

    def __str__(self) -> str:
        named = (f"{k}={v!r}" for k, v in self.arguments.items())
        arguments = ", ".join([*map(repr, self.positional), *named])
        head = f"{self.weight:g}*" if self.weight != 1 else ""
        return f"{head}{self.name}({arguments})" if arguments else f"{head}{self.name}"


def parse(text: str) -> list[Call]:
    """The calls in ``text``, in order.

    >>> parse("kd(4) + 0.8*crd(dim=64)")
    [Call(name='kd', arguments={}, weight=1.0, positional=(4,)),
     Call(name='crd', arguments={'dim': 64}, weight=0.8, positional=())]
    """
    try:
        return _terms(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"needs names with arguments, such as 'kd' or 'kd + 0.8*crd(dim=64)', got {text!r} "
            f"({error.args[0]}); quote the whole expression in a shell."
        ) from None


def _terms(node: ast.expr) -> list[Call]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _terms(node.left) + _terms(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        (call,) = _terms(node.right)
        return [call._replace(weight=call.weight * float(ast.literal_eval(node.left)))]
    if isinstance(node, ast.Name):
        return [Call(node.id, {})]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("** is not allowed")
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            raise ValueError("* is not allowed")
        # A bare name as an argument is a string, so that standardize(kd) needs no quotes.
        named = {str(k.arg): _literal(k.value) for k in node.keywords}
        if len(named) < len(node.keywords):  # ast.parse accepts repeated keywords
            raise ValueError("an argument is named twice")
        return [Call(node.func.id, named, positional=tuple(map(_literal, node.args)))]
    raise ValueError(f"cannot read {ast.unparse(node)!r}")


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Name) and node.id not in ("True", "False", "None"):
        return node.id
    if isinstance(node, ast.Call):
        return ast.unparse(node)
    return ast.literal_eval(node)


def lookup(registry: Mapping[str, T], name: str, *, kind: str) -> T:
    """``registry[name]``; ``ValueError`` with all names and the nearest one if there is none."""
    if name in registry:
        return registry[name]
    near = difflib.get_close_matches(name, registry, n=1)
    kinds = "losses" if kind == "loss" else f"{kind}s"
    hint = f"did you mean {near[0]!r}?" if near else f"`outgrow list {kinds}` describes them."
    raise ValueError(f"{kind}: needs one of {', '.join(registry)}; got {name!r}; {hint}")


def bind(factory: Callable[..., object], call: Call, *, kind: str) -> Call:
    """``call`` with a name for every argument; ``ValueError`` for arguments that ``factory`` does not take.

    >>> bind(lambda alpha=1.0, beta=8.0: None, parse("dkd(2, beta=6)")[0], kind="loss").arguments
    {'alpha': 2, 'beta': 6}
    """
    known = list(inspect.signature(factory).parameters)
    names, given = ", ".join(known) or "none", len(call.positional)
    if given > len(known):
        raise ValueError(
            f"{kind} {call.name}: needs at most {len(known)} argument{'' if len(known) == 1 else 's'} ({names}), "
            f"got {given}; remove the surplus ones."
        )
    if unknown := [name for name in call.arguments if name not in known]:
        raise ValueError(
            f"{kind} {call.name}: needs arguments out of ({names}), got {', '.join(unknown)}; remove or rename them."
        )
    by_position = dict(zip(known, call.positional, strict=False))
    if twice := [name for name in by_position if name in call.arguments]:
        raise ValueError(
            f"{kind} {call.name}: needs each argument once, got {', '.join(twice)} both by position and by name; "
            "remove one of the two."
        )
    return call._replace(arguments={**by_position, **call.arguments}, positional=())


def build(registry: Mapping[str, Callable[..., T]], call: Call, *, kind: str) -> T:
    """The object that ``call`` constructs from ``registry``; ``ValueError`` names unknown arguments."""
    factory = lookup(registry, call.name, kind=kind)
    parameters = inspect.signature(factory).parameters
    arguments = dict(bind(factory, call, kind=kind).arguments)
    for name, value in arguments.items():
        if not _fits(parameters[name].annotation, value):
            raise ValueError(
                f"{kind} {call.name}: needs a number for {name}, got {value!r}; write such as "
                f"{call.name}({name}=0.5), or leave it out."
            )
        if parameters[name].annotation is float and isinstance(value, int):
            arguments[name] = float(value)  # "beta=6" means 6.0
    return factory(**arguments)


def _fits(annotation: object, value: object) -> bool:
    """Whether a literal can be the value of a parameter. Only those that take nothing but numbers are checked."""
    kinds = set(get_args(annotation) or (annotation,))
    if not kinds & {int, float} or not kinds <= {int, float, NoneType, Tensor}:
        return True
    return isinstance(value, int | float) or (value is None and NoneType in kinds)
