"""From text to a tree of our own nodes: sqlglot reads it, and what is not in the closed set below is refused.

    condition   or | and | not | comparison | value BETWEEN value AND value | value IN (value, …)
                | value LIKE 'pattern' [ESCAPE 'c'] | value IS [NOT] NULL
    comparison  value = value, <>, !=, <, <=, >, >=
    value       number | 'text' | TRUE | FALSE | NULL | TIMESTAMP 'time' | value + - * / % value | - value
                | key | time | arrived | size | headers.name | headers['name'] | data | data.member[0]['member']

What is known of a value before any record was seen (a key is text, a size is a number) is checked here, so that a
comparison that can never hold is an error, not silence. Imported when a condition is parsed, not before.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

from sqlglot import exp, parse_one
from sqlglot.errors import ParseError, SqlglotError

from streamkit._core.conditions import (
    All,
    Among,
    Any,
    Arithmetic,
    Between,
    Compare,
    Condition,
    Constant,
    Field,
    Header,
    IsNull,
    Like,
    Negative,
    Node,
    Not,
    Path,
)
from streamkit.errors import InvalidQuery

TEXT_CHARACTERS_MAX = 4_096
NODES_MAX = 512
DEPTH_MAX = 64
_NESTING_MAX = 24                          # of brackets and of NOT, before the library's recursion begins

_FIELDS = {"key": "text", "time": "time", "arrived": "time", "size": "number", "data": "any"}
_NAMES = (*_FIELDS, "headers")
_COMPARISONS: dict[type[exp.Expr], str] = {
    exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=",
}  # fmt: skip
_ARITHMETIC: dict[type[exp.Expr], str] = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/", exp.Mod: "%"}
_TIMES = {"TIMESTAMP", "TIMESTAMPTZ", "DATE", "DATETIME"}
_CAN = "comparison, AND, OR, NOT, IN, LIKE, BETWEEN, IS NULL and arithmetic"
_INTEGER_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class _Made:
    """kind: "text", "number", "boolean", "time", "null", or "any" when only the record will tell."""

    node: Node
    kind: str
    constant: object = None


def parse(text: str) -> Condition:
    """Raises InvalidQuery."""
    return _Parser(text).condition()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._nodes = 0
        self._needs_data = False
        self._last: tuple[int, int] = (0, 0)       # the place that was last known, for trees without one
        if not isinstance(text, str) or not text.strip():
            self._refuse("a condition is needed", (0, 0), "for example: data.total > 100")
        if len(text) > TEXT_CHARACTERS_MAX:
            self._refuse(f"the condition has {len(text)} characters; at most {TEXT_CHARACTERS_MAX}", (0, 0))
        if "\x00" in text:
            self._refuse("a condition holds no zero bytes", (text.index("\x00"), text.index("\x00")))

    def condition(self) -> Condition:
        self._check_nesting()
        try:
            tree = parse_one(self._text, into=exp.Condition)
        except ParseError as cause:
            self._refuse_unread(cause)
        except SqlglotError as cause:
            self._refuse(f"it cannot be read: {str(cause).splitlines()[0].lower()[:100]}", (0, 0), cause=cause)
        except RecursionError as cause:
            self._refuse("it nests too deeply", (0, 0), cause=cause)
        made = self._logical(tree, 0)
        return Condition(made.node, self._needs_data)

    # ---- refusals ------------------------------------------------------------------------------------------

    def _refuse(
        self, what: str, place: tuple[int, int], hint: str = "", cause: BaseException | None = None
    ) -> NoReturn:
        raise self._refused(what, place, hint) from cause

    def _refused(self, what: str, place: tuple[int, int], hint: str = "") -> InvalidQuery:
        """place: first and last character."""
        text = self._text if isinstance(self._text, str) else ""
        first = min(max(place[0], 0), max(len(text) - 1, 0))
        before = text[:first]
        line = before.count("\n") + 1
        column = first - (before.rfind("\n") + 1)
        shown = (text.splitlines() or [""])[line - 1] if line <= len(text.splitlines()) else ""
        width = max(1, min(place[1] - place[0] + 1, len(shown) - column))
        start = max(0, column - 60)
        mark = " " * (column - start) + "^" * min(width, 60) + (f" {hint}" if hint else "")
        excerpt = f"    {shown[start:start + 120]}\n    {mark}"
        return InvalidQuery(
            f"{what} (line {line}, column {column + 1})\n{excerpt}", try_=hint or f"a condition is made of {_CAN}",
            line=line, column=column + 1, place=excerpt,
        )

    def _refuse_unread(self, cause: ParseError) -> NoReturn:
        error = cause.errors[0] if cause.errors else {}
        highlight = str(error.get("highlight") or "")
        context = error.get("start_context")
        line, column = int(error.get("line") or 1), int(error.get("col") or 0)
        starts = [0]
        for part in self._text.split("\n"):
            starts.append(starts[-1] + len(part) + 1)
        end = starts[min(line, len(starts) - 1) - 1] + column      # the library counts a token's last character from 1
        first = max(0, end - max(1, len(highlight))) if context is not None else 0
        what = f'"{highlight}" is not expected here' if highlight else "something is missing"
        if str(error.get("description", "")).startswith("Required keyword"):
            what = f'something is missing at "{highlight}"' if highlight else "something is missing at the end"
        self._refuse(what, (first, max(first, end - 1)), cause=cause)

    def _check_nesting(self) -> None:
        # A first look, so that hostile text costs no deep recursion: brackets outside quotes, and runs of NOT or "-".
        depth = run = 0
        quote = ""
        for at, character in enumerate(self._text):
            if quote:
                quote = "" if character == quote else quote
                continue
            if character in "'\"`":
                quote = character
            elif character in "([":
                depth += 1
                run = 0
            elif character in ")]":
                depth -= 1
            elif character in "-~!+" or (character in "nN" and self._text[at : at + 3].upper() == "NOT"):
                run += 1
            elif not character.isspace() and character not in "oOtT":
                run = 0
            if depth > _NESTING_MAX or run > _NESTING_MAX:
                self._refuse("it nests too deeply", (at, at), "write it with fewer brackets")

    def _place(self, tree: exp.Expr) -> tuple[int, int]:
        places = [node.meta for node in tree.walk() if "start" in node.meta]
        if not places:
            return self._last
        self._last = (min(place["start"] for place in places), max(place["end"] for place in places))
        return self._last

    def _count(self, tree: exp.Expr, depth: int) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            self._refuse(f"it has more than {NODES_MAX} parts", self._place(tree))
        if depth > DEPTH_MAX:
            self._refuse("it nests too deeply", self._place(tree), "write it with fewer brackets")

    def _only(self, tree: exp.Expr, *names: str) -> None:
        # What the library may attach to a node, and we do not know of, must not be passed over in silence.
        for name, value in tree.args.items():
            if name not in names and value not in (None, False, []):
                self._refuse("this is not part of the language", self._place(tree))

    # ---- truth ---------------------------------------------------------------------------------------------

    def _logical(self, tree: exp.Expr, depth: int) -> _Made:
        made = self._made(tree, depth)
        if made.kind not in ("boolean", "any", "null"):
            self._refuse(f"a {made.kind} is neither true nor false", self._place(tree), "compare it with something")
        return made

    def _joined(self, tree: exp.Expr, depth: int) -> _Made:
        # a AND b AND c is one node: long chains are no deep trees.
        kind = type(tree)
        parts: list[exp.Expr] = []
        left = [tree]
        while left:
            node = left.pop()
            if type(node) is kind:
                self._only(node, "this", "expression")
                left += [node.args["expression"], node.args["this"]]
            else:
                parts.append(node)
        inner = tuple(self._logical(part, depth + 1).node for part in parts)
        return _Made(All(inner) if kind is exp.And else Any(inner), "boolean")

    def _made(self, tree: exp.Expr, depth: int) -> _Made:
        self._count(tree, depth)
        kind = type(tree)
        if kind in (exp.And, exp.Or):
            return self._joined(tree, depth)
        if kind in _COMPARISONS:
            return self._comparison(tree, depth)
        if kind in _ARITHMETIC:
            return self._arithmetic(tree, depth)
        if kind in (exp.Column, exp.Dot, exp.Bracket):
            return self._name(tree)
        known = _KNOWN.get(kind)
        if known is None:
            self._refuse_kind(tree)
        return known(self, tree, depth)

    def _refuse_kind(self, tree: exp.Expr) -> NoReturn:
        hints: dict[type[exp.Expr], str] = {
            exp.ILike: "LIKE tells upper case from lower case; compare with both",
            exp.Cast: "values are compared as what they are; there are no casts but TIMESTAMP 'text'",
            exp.DPipe: "texts cannot be joined",
        }
        if isinstance(tree, exp.Func) and type(tree) not in hints:
            self._refuse("there are no functions", self._place(tree), f"what there is: {_CAN}")
        hint = hints.get(type(tree), f"what there is: {_CAN}")
        self._refuse("this is not part of the language", self._place(tree), hint)

    def _not(self, tree: exp.Expr, depth: int) -> _Made:
        self._only(tree, "this")
        return _Made(Not(self._logical(tree.args["this"], depth + 1).node), "boolean")

    def _paren(self, tree: exp.Expr, depth: int) -> _Made:
        self._only(tree, "this")
        return self._made(tree.args["this"], depth + 1)

    def _comparison(self, tree: exp.Expr, depth: int) -> _Made:
        self._only(tree, "this", "expression")
        left, right = self._pair(tree.args["this"], tree.args["expression"], depth)
        return _Made(Compare(_COMPARISONS[type(tree)], left.node, right.node), "boolean")

    def _between(self, tree: exp.Expr, depth: int) -> _Made:
        self._only(tree, "this", "low", "high")
        inner, low = self._pair(tree.args["this"], tree.args["low"], depth)
        inner, high = self._paired(inner, tree.args["high"], depth)
        return _Made(Between(inner.node, low.node, high.node), "boolean")

    def _in(self, tree: exp.Expr, depth: int) -> _Made:
        if tree.args.get("query") is not None or tree.args.get("unnest") is not None:
            self._refuse("there are no queries inside", self._place(tree), "list the values: key IN ('a', 'b')")
        self._only(tree, "this", "expressions")
        if not tree.expressions:
            self._refuse("IN needs values", self._place(tree), "list them: key IN ('a', 'b')")
        inner = self._made(tree.args["this"], depth + 1)
        items = []
        for item in tree.expressions:
            inner, made = self._paired(inner, item, depth)
            items.append(made.node)
        return _Made(Among(inner.node, tuple(items)), "boolean")

    def _like(self, tree: exp.Expr, depth: int, escape: str = "") -> _Made:
        self._only(tree, "this", "expression", "negate")
        pattern = tree.args["expression"]
        inner = self._made(tree.args["this"], depth + 1)
        if inner.kind not in ("text", "any", "null"):
            self._refuse(f"LIKE is for texts, not for a {inner.kind}", self._place(tree.args["this"]))
        if not isinstance(pattern, exp.Literal) or not pattern.is_string:
            self._refuse("a pattern is written out", self._place(pattern), "for example: key LIKE 'customer-%'")
        self._count(pattern, depth)
        like: Node = Like(inner.node, self._pattern(pattern, escape))
        return _Made(Not(like) if tree.args.get("negate") else like, "boolean")

    def _escape(self, tree: exp.Expr, depth: int) -> _Made:
        self._only(tree, "this", "expression")
        like, escape = tree.args["this"], tree.args["expression"]
        if type(like) is not exp.Like or not isinstance(escape, exp.Literal) or len(escape.this) != 1:
            self._refuse("ESCAPE takes one character", self._place(escape), "for example: key LIKE '10!%' ESCAPE '!'")
        return self._like(like, depth, escape.this)

    def _pattern(self, literal: exp.Literal, escape: str) -> tuple[tuple[str, bytes | None], ...]:
        parts: list[tuple[list[str], bytearray]] = [([], bytearray())]
        characters = iter(literal.this)
        for character in characters:
            if character == "%" and character != escape:
                parts.append(([], bytearray()))
                continue
            wild = character == "_" and character != escape
            if character == escape:
                character = next(characters, "")
                if not character:
                    self._refuse("the pattern ends with its escape character", self._place(literal))
            parts[-1][0].append(character)
            parts[-1][1].append(wild)
        return tuple(("".join(texts), bytes(wild) if any(wild) else None) for texts, wild in parts)

    def _is(self, tree: exp.Expr, depth: int) -> _Made:
        self._only(tree, "this", "expression")
        if not isinstance(tree.args["expression"], exp.Null):
            self._refuse("IS goes with NULL only", self._place(tree), "write data.paid = TRUE")
        return _Made(IsNull(self._made(tree.args["this"], depth + 1).node), "boolean")

    # ---- values --------------------------------------------------------------------------------------------

    def _pair(self, left: exp.Expr, right: exp.Expr, depth: int) -> tuple[_Made, _Made]:
        return self._paired(self._made(left, depth + 1), right, depth)

    def _paired(self, left: _Made, right: exp.Expr, depth: int) -> tuple[_Made, _Made]:
        """Both sides of a comparison; a text beside a time is read as a time."""
        made = self._made(right, depth + 1)
        if left.kind == "time" and made.kind == "text" and isinstance(made.constant, str):
            made = self._time(made.constant, right)
        elif made.kind == "time" and left.kind == "text" and isinstance(left.constant, str):
            left = self._time(left.constant, right)
        kinds = {left.kind, made.kind} - {"any", "null"}
        if len(kinds) > 1 and kinds != {"text", "time"}:
            self._refuse(f"a {left.kind} and a {made.kind} cannot be compared", self._place(right))
        return left, made

    def _time(self, text: str, tree: exp.Expr) -> _Made:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as cause:
            hint = "for example: '2026-11-23T10:00:00Z'"
            self._refuse(f"'{text[:60]}' is not a time", self._place(tree), hint, cause)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return _Made(Constant(moment), "time", moment)

    def _cast(self, tree: exp.Expr, depth: int) -> _Made:
        inner, to = tree.args.get("this"), tree.args.get("to")
        written = isinstance(inner, exp.Literal) and inner.is_string and type(tree) is exp.Cast
        self._only(tree, "this", "to")
        if not written or not isinstance(to, exp.DataType) or to.this.name not in _TIMES:
            self._refuse_kind(tree)
        assert isinstance(inner, exp.Literal), "it was written out"
        return self._time(inner.this, inner)

    def _arithmetic(self, tree: exp.Expr, depth: int) -> _Made:
        if isinstance(tree, exp.Div):
            self._only(tree, "this", "expression", "typed", "safe")
        else:
            self._only(tree, "this", "expression")
        sides = []
        for side in (tree.args["this"], tree.args["expression"]):
            made = self._made(side, depth + 1)
            if made.kind not in ("number", "any", "null"):
                name = " (a name with a dash is quoted: headers['content-type'])" if made.kind == "text" else ""
                self._refuse(f"a {made.kind} is no number{name}", self._place(side))
            sides.append(made.node)
        return _Made(Arithmetic(_ARITHMETIC[type(tree)], sides[0], sides[1]), "number")

    def _negative(self, tree: exp.Expr, depth: int) -> _Made:
        self._only(tree, "this")
        made = self._made(tree.args["this"], depth + 1)
        if made.kind not in ("number", "any", "null"):
            self._refuse(f"a {made.kind} is no number", self._place(tree))
        if type(made.constant) is int or type(made.constant) is float:
            return _Made(Constant(-made.constant), "number", -made.constant)
        return _Made(Negative(made.node), "number")

    def _literal(self, tree: exp.Expr, depth: int) -> _Made:
        text = str(tree.args["this"])
        if tree.args.get("is_string"):
            return _Made(Constant(text), "text", text)
        value: int | float
        try:
            value = int(text)
        except ValueError:
            value = float(text)
        if isinstance(value, int) and value > _INTEGER_MAX:
            self._refuse("the number needs more than 64 bits", self._place(tree), "write it with a point")
        return _Made(Constant(value), "number", value)

    def _boolean(self, tree: exp.Expr, depth: int) -> _Made:
        value = bool(tree.args["this"])
        return _Made(Constant(value), "boolean", value)

    def _null(self, tree: exp.Expr, depth: int) -> _Made:
        return _Made(Constant(None), "null")

    # ---- names ---------------------------------------------------------------------------------------------

    def _name(self, tree: exp.Expr) -> _Made:
        steps = self._steps(tree)
        root, place = steps[0]
        if root in _FIELDS and len(steps) == 1:
            self._needs_data = self._needs_data or root == "data"
            return _Made(Field(str(root)), _FIELDS[str(root)])
        inner = [step for step, _ in steps[1:]]
        if root == "data":
            self._needs_data = True
            if len(inner) > DEPTH_MAX:
                self._refuse("the path is too long", self._place(tree))
            return _Made(Path(tuple(inner)), "any")
        if root == "headers":
            if len(inner) == 1 and isinstance(inner[0], str):
                return _Made(Header(inner[0]), "text")
            hint = "for example: headers.tenant, headers['content-type']"
            self._refuse("a header has one name", self._place(tree), hint)
        if root in _FIELDS:
            self._refuse(f'"{root}" has nothing inside', place, f"in the payload it is data.{root}")
        raise self._refused(f'unknown name "{root}"', place, self._nearest(str(root), tree))

    def _nearest(self, name: str, tree: exp.Expr) -> str:
        quoted = any(isinstance(node, exp.Identifier) and node.args.get("quoted") and node.this == name
                     for node in tree.walk())
        if quoted:
            return f"text is written in single quotes: '{name}'"
        near = difflib.get_close_matches(name.lower(), _NAMES, n=1, cutoff=0.65)
        if near:
            return f"did you mean {near[0]}?"
        return f"did you mean data.{name}?"

    def _steps(self, tree: exp.Expr) -> list[tuple[str | int, tuple[int, int]]]:
        """A name and what is inside it, outermost first, with the places where they stand."""
        steps: list[tuple[str | int, tuple[int, int]]] = []
        at: exp.Expr = tree
        while True:
            self._count(at, 0)
            if isinstance(at, exp.Column):
                self._only(at, "this", "table", "db", "catalog")
                parts = [at.args[name] for name in ("this", "table", "db", "catalog") if at.args.get(name) is not None]
                steps += [self._step(part) for part in parts]
                return steps[::-1]
            if isinstance(at, exp.Identifier):
                steps.append(self._step(at))
                return steps[::-1]
            if isinstance(at, exp.Dot):
                self._only(at, "this", "expression")
                steps.append(self._step(at.args["expression"]))
            elif isinstance(at, exp.Bracket):
                self._only(at, "this", "expressions", "offset", "safe")
                if len(at.expressions) != 1:
                    self._refuse("one element at a time", self._place(at), "for example: data.items[0]")
                steps.append(self._element(at.expressions[0]))
            else:
                self._refuse_kind(at)
            at = at.args["this"]

    def _step(self, tree: exp.Expr) -> tuple[str, tuple[int, int]]:
        if not isinstance(tree, exp.Identifier):
            self._refuse_kind(tree)
        return str(tree.this), self._place(tree)

    def _element(self, tree: exp.Expr) -> tuple[str | int, tuple[int, int]]:
        if isinstance(tree, exp.Literal):
            if tree.is_string:
                return str(tree.this), self._place(tree)
            if str(tree.this).isdecimal() and len(tree.this) < 10:
                return int(tree.this), self._place(tree)
        raise self._refused("an element is a whole number from 0, or a name in quotes", self._place(tree),
                            "for example: data.items[0], data['first name']")


_KNOWN: dict[type, Callable[[_Parser, exp.Expr, int], _Made]] = {
    exp.Not: _Parser._not,
    exp.Paren: _Parser._paren,
    exp.Between: _Parser._between,
    exp.In: _Parser._in,
    exp.Like: _Parser._like,
    exp.Escape: _Parser._escape,
    exp.Is: _Parser._is,
    exp.Neg: _Parser._negative,
    exp.Literal: _Parser._literal,
    exp.Boolean: _Parser._boolean,
    exp.Null: _Parser._null,
    exp.Cast: _Parser._cast,
}
