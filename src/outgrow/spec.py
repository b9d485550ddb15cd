"""How a loss or a rule is written in one line: ``kd``, ``kd(4)``, ``dkd(beta=6)``, ``kd + 0.8*crd(dim=64)``.

The command line, configuration files and ``Objective(loss=...)`` share this small grammar. It is
Python's own call syntax with literal arguments, read by :mod:`ast` and never evaluated. Arguments without
a name go to the constructor's parameters in order.
"""

import ast
import difflib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import NamedTuple, TypeGuard, TypeVar, get_args, get_origin

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
    except (SyntaxError, ValueError, TypeError) as error:
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
        annotation = parameters[name].annotation
        if wanted := _wanted(annotation, value):
            raise ValueError(
                f"{kind} {call.name}: needs {wanted} for {name}, got {value!r}; write such as "
                f"{call.name}({name}={_EXAMPLES[wanted]}), or leave it out."
            )
        if annotation is float and isinstance(value, int):
            arguments[name] = float(value)  # "beta=6" means 6.0
        elif isinstance(value, float) and _is_whole(annotation):
            arguments[name] = int(value)  # "dim=64.0" means 64
    return factory(**arguments)


_EXAMPLES = {
    "a number": "0.5",
    "a whole number": "2",
    "a list of numbers": "(1, 2)",
    "a name": "'NAME'",
    "a name, or a list of names": "'NAME'",
}


def _wanted(annotation: object, value: object) -> str:
    """What a parameter needs, if a literal cannot be its value. Only those of numbers, names and lists of them are checked."""
    kinds = set(get_args(annotation) or (annotation,))
    if get_origin(annotation) is Sequence:
        numbers = isinstance(value, list | tuple) and all(_is_number(one) for one in value)
        return "" if numbers else "a list of numbers"
    if any(get_origin(kind) is Sequence for kind in kinds):
        named = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        return "" if named or type(value) in kinds else "a name, or a list of names"
    if str in kinds:
        return "" if type(value) in kinds else "a name"
    if not kinds & {int, float} or not kinds <= {int, float, NoneType, Tensor}:
        return ""
    if value is None and NoneType in kinds:
        return ""
    if _is_whole(annotation):
        return "" if _is_number(value) and float(value).is_integer() else "a whole number"
    return "" if _is_number(value) else "a number"


def _is_whole(annotation: object) -> bool:
    """Whether a parameter takes whole numbers alone."""
    kinds = set(get_args(annotation) or (annotation,))
    return int in kinds and float not in kinds


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is one, and finite; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # not of infinity, NaN, or a whole number that no float can be
