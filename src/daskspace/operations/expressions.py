"""Safe expressions for ranges and constraints."""

from __future__ import annotations

import ast
import functools
import keyword
import math
import operator
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes, InvalidExpression

from daskspace.errors import SpecError, did_you_mean

MAX_VALUES = 10_000_000

_MAX_BITS = 10_000
_MAX_DIGITS = 400
_CONSTANTS = {"pi": math.pi, "e": math.e}
_STR_METHODS = frozenset({"count", "endswith", "lower", "startswith", "strip", "upper"})
_SYNTAX = (
    *(ast.Constant, ast.Name, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp),
    *(ast.Call, ast.Attribute, ast.Subscript, ast.Slice, ast.List, ast.Tuple, ast.Set),
    *(ast.Dict, ast.ListComp, ast.GeneratorExp, ast.comprehension, ast.keyword, ast.Starred),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)
_STRING_OR_PLACEHOLDER = re.compile(
    r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|\$\{([^{}]*)\}""", re.DOTALL
)


def evaluate_range(text: str) -> Sequence[Any]:
    """Return the values that `text` describes.

    Python's ``range``, lists and list comprehensions, and numpy's ``arange``, ``linspace``,
    ``logspace`` and ``geomspace``, whose values are plain numbers here. pySPACE's spelling
    ``eval(range(1, 10))`` means the same as ``range(1, 10)``.

    Parameters
    ----------
    text
        The expression, such as ``logspace(-3, 3, 7)`` or ``[10**x for x in range(-3, 3)]``.

    Returns
    -------
    Sequence
        A ``range`` as it is, everything else as a list.

    Raises
    ------
    SpecError
        When `text` cannot be evaluated, or gives no values, too many, or no list at all.
    """
    inner = text.strip()
    if inner.startswith("eval(") and inner.endswith(")"):
        inner = inner.removeprefix("eval(").removesuffix(")")
    try:
        expression = _parse(inner)
        for name in _free_names(expression):
            raise ValueError(f"unknown name {name!r}{did_you_mean(name, _FUNCTIONS)}")
        values = _evaluator(_CONSTANTS).eval(inner, expression)
        if not isinstance(values, list | tuple | range):
            raise ValueError(f"it gives {type(values).__name__}, not a list")
        _check_length(values)
    except Exception as error:
        raise SpecError(f"the range {text!r} cannot be used: {_reason(error)}") from error
    if not values:
        raise SpecError(f"the range {text!r} is empty")
    return values if isinstance(values, range) else list(values)


class Constraint:
    """A condition on parameters, parsed once: ``Constraint("C > 1")({"C": 3})`` is true.

    A parameter `C` may also be written ``__C__``, ``${C}`` or ``${__C__}``, the last two
    for names that are no Python names, such as ``${lambda}`` or ``${learning-rate}``.
    Parameters hide the constants ``pi`` and ``e``.

    Parameters
    ----------
    text
        The condition, an expression in Python's syntax.

    Attributes
    ----------
    text : str
        The condition as it was written.
    names : frozenset of str
        The parameters it uses, without the underscores and braces of their spelling.

    Raises
    ------
    SpecError
        When `text` is no valid expression, or uses what is not allowed in one.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._expression = _parse(text)
        except Exception as error:
            reason = _reason(error)
            raise SpecError(f"the constraint {text!r} cannot be used: {reason}") from error
        self.names = frozenset(map(_bare, _free_names(self._expression)))
        self._evaluator = _evaluator({})

    def __call__(self, parameters: Mapping[str, Any]) -> bool:
        """Return whether `parameters` fulfil the condition."""
        self._evaluator.names = _Names(self, parameters)
        try:
            return bool(self._evaluator.eval(self.text, self._expression))
        except SpecError:
            raise
        except Exception as error:
            raise SpecError(
                f"the constraint {self.text!r} fails with {dict(parameters)!r}: {_reason(error)}"
            ) from error

    def __repr__(self) -> str:
        return f"Constraint({self.text!r})"

    def __reduce__(self) -> tuple[type[Constraint], tuple[str]]:
        return Constraint, (self.text,)

    def check_names(self, known: Collection[str]) -> None:
        """Raise a SpecError if the condition uses a parameter that is not in `known`."""
        for name in sorted(self.names - set(map(_bare, known))):
            raise self._unknown(name, known)

    def _unknown(self, name: str, known: Iterable[str]) -> SpecError:
        parameters = ", ".join(map(repr, known)) or "there are none"
        return SpecError(
            f"the constraint {self.text!r} uses the unknown parameter {name!r}"
            f"{did_you_mean(name, known)} (known: {parameters})"
        )


class _Names:
    """The parameters under all their spellings, then the constants, as simpleeval asks for them."""

    def __init__(self, constraint: Constraint, parameters: Mapping[str, Any]) -> None:
        self._constraint = constraint
        self._parameters = parameters

    def __getitem__(self, name: str) -> Any:
        if name in self._parameters:
            return self._parameters[name]
        bare = _bare(name)
        for spelling in (bare, f"__{bare}__"):
            if spelling in self._parameters:
                return self._parameters[spelling]
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        raise self._constraint._unknown(bare, self._parameters)


def _bare(name: str) -> str:
    is_wrapped = len(name) > 4 and name.startswith("__") and name.endswith("__")
    return name[2:-2] if is_wrapped else name


def _parse(text: str) -> ast.expr:
    """Return the expression in `text`, its placeholders as names, if all of it is allowed."""
    placeholders: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        name = match[2].strip()
        if name.isidentifier() and not keyword.iskeyword(name):
            return f" {name} "
        placeholder = f"_placeholder_{len(placeholders)}_"
        placeholders[placeholder] = name
        return f" {placeholder} "

    source = _STRING_OR_PLACEHOLDER.sub(stand_in, text).strip()
    if not source:
        raise ValueError("it is empty")
    expression = ast.parse(source, mode="eval").body
    for node in ast.walk(expression):
        if isinstance(node, ast.Name):
            node.id = placeholders.get(node.id, node.id)
        _check_allowed(node)
    return expression


def _check_allowed(node: ast.AST) -> None:
    match node:
        case ast.Call(func=ast.Name(id=name)) if name not in _FUNCTIONS:
            raise ValueError(f"unknown function {name!r}{did_you_mean(name, _FUNCTIONS)}")
        case ast.Call(func=func) if not isinstance(func, ast.Name | ast.Attribute):
            raise ValueError("only functions with a name can be called")
        case ast.Attribute(attr=name) if name not in _STR_METHODS:
            raise ValueError(f"the attribute {name!r} is not allowed")
        case ast.MatMult():
            raise ValueError("the operator @ is not allowed")
    if not isinstance(node, _SYNTAX):
        raise ValueError(f"{type(node).__name__} is not allowed in an expression")


def _free_names(expression: ast.expr) -> list[str]:
    """Return the names to look up: neither called, nor constants, nor loop variables."""
    nodes = list(ast.walk(expression))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    names = [node for node in nodes if isinstance(node, ast.Name) and id(node) not in called]
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return [node.id for node in names if node.id not in bound and node.id not in _CONSTANTS]


def _evaluator(names: Mapping[str, Any]) -> EvalWithCompoundTypes:
    operators = {**DEFAULT_OPERATORS, ast.Pow: _power, ast.Mod: _modulo}
    evaluator = EvalWithCompoundTypes(
        operators=operators, names=names, allowed_attrs={str: _STR_METHODS}
    )
    evaluator.functions = _FUNCTIONS
    return evaluator


def _reason(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return error.msg
    if isinstance(error, ValueError | InvalidExpression):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _check_length(values: Any) -> None:
    try:
        length = len(values)
    except OverflowError:
        length = sys.maxsize
    if length > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES:,} values")


def _on_limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, refusing what is too long to walk through."""

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        for values in args:
            if isinstance(values, range):
                _check_length(values)
        return function(*args, **kwargs)

    return limited


def _power(base: Any, exponent: Any) -> Any:
    is_integral = isinstance(base, int) and isinstance(exponent, int)
    if is_integral and base.bit_length() * exponent > _MAX_BITS:
        raise ValueError(f"{base} ** {exponent} is too large")
    return base**exponent


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str | bytes):
        raise TypeError("text cannot be formatted here")
    return left % right


def _round(number: Any, digits: int | None = None) -> Any:
    if digits is not None and abs(digits) > _MAX_DIGITS:
        raise ValueError(f"round takes at most {_MAX_DIGITS} digits")
    return round(number, digits)


def _arange(start: float, stop: float | None = None, step: float = 1) -> Sequence[float]:
    if stop is None:
        start, stop = 0, start
    if step == 0:
        raise ValueError("the step of arange must not be 0")
    if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
        return range(start, stop, step)
    indices = range(math.ceil((stop - start) / step))
    _check_length(indices)
    return [float(start + i * step) for i in indices]


def _linspace(start: float, stop: float, num: int = 50) -> list[float]:
    indices = range(operator.index(num))
    _check_length(indices)
    gaps = max(num - 1, 1)
    step = (stop - start) / gaps
    values = [float(start + i * step) for i in indices]
    if num > 1:
        values[-1] = float(stop)
    return values


def _logspace(start: float, stop: float, num: int = 50, base: float = 10) -> list[float]:
    return [float(base) ** exponent for exponent in _linspace(start, stop, num)]


def _geomspace(start: float, stop: float, num: int = 50) -> list[float]:
    if start * stop <= 0:
        raise ValueError("geomspace needs two numbers of the same sign, and none of them 0")
    sign = math.copysign(1, start)
    exponents = _linspace(math.log10(abs(start)), math.log10(abs(stop)), num)
    values = [sign * 10.0**exponent for exponent in exponents]
    if values:
        values[0] = float(start)
    if num > 1:
        values[-1] = float(stop)
    return values


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "arange": _arange,
    "exp": math.exp,
    "float": float,
    "geomspace": _geomspace,
    "int": int,
    "len": len,
    "linspace": _linspace,
    "list": _on_limited(list),
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "logspace": _logspace,
    "max": _on_limited(max),
    "min": _on_limited(min),
    "range": range,
    "round": _round,
    "sorted": _on_limited(sorted),
    "sqrt": math.sqrt,
    "str": str,
    "sum": _on_limited(sum),
}
