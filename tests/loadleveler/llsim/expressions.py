"""Requirements and dependencies: `(Feature == "mic") && (Memory > 4096)`, parsed and answered."""

import operator
import re

from .jcf import RefusedError

TOKEN = re.compile(
    r"""\s*(?:(?P<operator>\|\||&&|==|!=|>=|<=|>|<|!|\(|\)|\{|\})"""
    r"""|"(?P<string>[^"]*)"|(?P<number>-?\d+(?:\.\d+)?)|(?P<name>[A-Za-z_][\w.]*))"""
)
COMPARISONS = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


def parse(text):
    """Return `text` as tuples: `("or" | "and", x, y)`, `("not", x)`, `("==", name, value)`."""
    tokens = _tokens(text)
    tree, rest = _either(tokens)
    if rest:
        raise RefusedError(f"syntax error in {text!r} at {rest[0][1]!r}")
    return tree


def holds(tree, lookup):
    """Say whether `tree` holds where `lookup(name)` gives a value or a list of alternatives.

    None from `lookup` means that it is not known yet, and makes the answer None unless the rest
    decides.
    """
    kind, *parts = tree
    if kind == "not":
        inner = holds(parts[0], lookup)
        return None if inner is None else not inner
    if kind in ("and", "or"):
        answers = [holds(part, lookup) for part in parts]
        decisive = kind == "or"
        if decisive in answers:
            return decisive
        return None if None in answers else not decisive
    name, wanted = parts
    actual = lookup(name)
    if actual is None:
        return None
    return _compare(kind, actual, wanted)


def _compare(comparison, actual, wanted):
    pairs = [
        (left, right)
        for left in (actual if isinstance(actual, list) else [actual])
        for right in (wanted if isinstance(wanted, list) else [wanted])
    ]
    compare = COMPARISONS[comparison]
    comparable = [(a, b) for a, b in pairs if isinstance(a, str) == isinstance(b, str)]
    if comparison == "!=":
        return all(compare(*pair) for pair in comparable)
    return any(compare(*pair) for pair in comparable)


def _tokens(text):
    tokens, end = [], 0
    while text[end:].strip():
        match = TOKEN.match(text, end)
        if not match:
            raise RefusedError(f"syntax error in {text!r} at {text[end:].strip()[:10]!r}")
        value = match[match.lastgroup]
        tokens.append((match.lastgroup, float(value) if match.lastgroup == "number" else value))
        end = match.end()
    return tokens


def _either(tokens):
    return _chain(tokens, "||", "or", _both)


def _both(tokens):
    return _chain(tokens, "&&", "and", _single)


def _chain(tokens, sign, kind, inner):
    left, rest = inner(tokens)
    while rest and rest[0] == ("operator", sign):
        right, rest = inner(rest[1:])
        left = (kind, left, right)
    return left, rest


def _single(tokens):
    if not tokens:
        raise RefusedError("an expression ends too early")
    if tokens[0] == ("operator", "!"):
        inner, rest = _single(tokens[1:])
        return ("not", inner), rest
    if tokens[0] == ("operator", "("):
        inner, rest = _either(tokens[1:])
        return inner, _after(rest, ")")
    (kind, name), *rest = tokens
    if kind != "name" or not rest or rest[0][1] not in COMPARISONS:
        raise RefusedError(f"a comparison cannot begin with {name!r}")
    comparison = rest[0][1]
    value, rest = _value(rest[1:])
    return (comparison, name, value), rest


def _value(tokens):
    if not tokens:
        raise RefusedError("a comparison has no right side")
    if tokens[0] != ("operator", "{"):
        (kind, value), *rest = tokens
        if kind == "operator":
            raise RefusedError(f"a value cannot be {value!r}")
        return value, rest
    values, rest = [], tokens[1:]
    while rest and rest[0][0] != "operator":
        values.append(rest[0][1])
        rest = rest[1:]
    return values, _after(rest, "}")


def _after(tokens, sign):
    if not tokens or tokens[0] != ("operator", sign):
        raise RefusedError(f"an expression lacks its {sign!r}")
    return tokens[1:]
