"""How a loss or a rule is written in one line: ``kd``, ``dkd(beta=6)``, ``kd + 0.8*crd(dim=64)``.

The command line, configuration files and ``Objective(loss=...)`` share this small grammar. It is
Python's own call syntax with literal arguments, read by :mod:`ast` and never evaluated.
"""

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Call(NamedTuple):
    """One constructor to call, and how much its result weighs."""

    name: str
    arguments: dict[str, object]
    weight: float = 1.0

    def __str__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.arguments.items())
        head = f"{self.weight:g}*" if self.weight != 1 else ""
        return f"{head}{self.name}({arguments})" if arguments else f"{head}{self.name}"


def parse(text: str) -> list[Call]:
    """The calls in ``text``, in order.

    >>> parse("kd + 0.8*crd(dim=64)")
    [Call(name='kd', arguments={}, weight=1.0), Call(name='crd', arguments={'dim': 64}, weight=0.8)]
    """
    try:
        return _terms(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"needs names with keyword arguments, such as 'kd' or 'kd + 0.8*crd(dim=64)', got {text!r} "
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
        # A bare name as an argument is a string, so that standardize(kd) needs no quotes.
        values = {str(k.arg): _literal(k.value) for k in node.keywords}
        if node.args:
            if len(node.args) > 1:
                raise ValueError("arguments after the first need their names")
            values = {"base": _literal(node.args[0]), **values}
        return [Call(node.func.id, values)]
    raise ValueError(f"cannot read {ast.unparse(node)!r}")


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Name) and node.id not in ("True", "False", "None"):
        return node.id
    if isinstance(node, ast.Call):
        return ast.unparse(node)
    return ast.literal_eval(node)


def lookup(registry: Mapping[str, T], name: str, *, kind: str) -> T:
    """``registry[name]``, or an error that lists what there is and the nearest name."""
    if name in registry:
        return registry[name]
    near = difflib.get_close_matches(name, registry, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"`outgrow list {kind}s` describes them."
    raise ValueError(f"{kind}: needs one of {', '.join(registry)}; got {name!r}; {hint}")


def build(registry: Mapping[str, Callable[..., T]], call: Call, *, kind: str) -> T:
    """What ``call`` constructs from ``registry``; unknown arguments are refused by name."""
    factory = lookup(registry, call.name, kind=kind)
    parameters = inspect.signature(factory).parameters
    known = list(parameters)
    unknown = [name for name in call.arguments if name not in known]
    if unknown:
        raise ValueError(
            f"{kind} {call.name}: needs arguments out of ({', '.join(known) or 'none'}), "
            f"got {', '.join(unknown)}; remove or rename them."
        )
    arguments = dict(call.arguments)
    for name, value in arguments.items():
        if parameters[name].annotation is float and isinstance(value, int):
            arguments[name] = float(value)  # "beta=6" is written for 6.0
    return factory(**arguments)
