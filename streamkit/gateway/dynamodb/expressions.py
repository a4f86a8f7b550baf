"""The expression language: text to trees, by recursive descent. Pure; reads no item.

    condition   = conjunction { OR conjunction }          conjunction = negation { AND negation }
    negation    = NOT negation | "(" condition ")" | operand compare operand | operand BETWEEN operand AND operand
                | operand IN "(" operand { "," operand } ")" | function "(" operand { "," operand } ")"
    operand     = path | :value | size "(" path ")"       path = name { "." name | "[" digits "]" }
    update      = { SET … | REMOVE … | ADD … | DELETE … }, each word once

Whatever the text, a tree comes out or a ValidationException; a text has 4,096 bytes, 300 operators and 32 levels at
most. Names that the real service reserves are taken here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from streamkit.gateway.dynamodb.errors import DynamoError, invalid, malformed
from streamkit.gateway.dynamodb.paths import Path, clashes
from streamkit.gateway.dynamodb.values import SETS, TYPE_NAMES, TYPES, Value, compare, kind_of, parse_value, text_size

LENGTH_MAX = 4_096                         # bytes
_OPERATORS_MAX = 300
_DEPTH_MAX = 32
_CHOICES_MAX = 100                         # of IN
_PATH_PARTS_MAX = 32
_SUBSTITUTIONS_BYTES_MAX = 2 * 1024 * 1024
_TOKEN = re.compile(r"\s*(?:(?P<word>[#:]?[A-Za-z0-9_]+)|(?P<sign><>|<=|>=|[=<>+\-.,()\[\]]))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHORT_NAME = re.compile(r"#[A-Za-z0-9_]+")
_SHORT_VALUE = re.compile(r":[A-Za-z0-9_]+")
_COMPARATORS = ("=", "<>", "<", "<=", ">", ">=")
_ARITY = {"attribute_exists": 1, "attribute_not_exists": 1, "attribute_type": 2, "begins_with": 2, "contains": 2}
_CLAUSES = ("SET", "REMOVE", "ADD", "DELETE")
_END = ""


@dataclass(frozen=True, slots=True)
class Constant:
    value: Value
    name: str = ""                         # ":value" as the expression writes it


@dataclass(frozen=True, slots=True)
class Size:
    path: Path


Operand = Path | Constant | Size


@dataclass(frozen=True, slots=True)
class Compare:
    operator: str                          # = <> < <= > >=
    left: Operand
    right: Operand


@dataclass(frozen=True, slots=True)
class Between:
    subject: Operand
    low: Operand
    high: Operand                          # inclusive


@dataclass(frozen=True, slots=True)
class Among:
    subject: Operand
    choices: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Test:
    """One of the functions attribute_exists, attribute_not_exists, attribute_type, begins_with, contains."""

    function: str
    subject: Operand
    argument: Operand | None = None


@dataclass(frozen=True, slots=True)
class Every:
    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Some:
    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Negated:
    part: Condition


Condition = Compare | Between | Among | Test | Every | Some | Negated


@dataclass(frozen=True, slots=True)
class Otherwise:
    """if_not_exists: what is at the path, or the operand when nothing is."""

    path: Path
    operand: Source


@dataclass(frozen=True, slots=True)
class Joined:
    """list_append."""

    left: Source
    right: Source


@dataclass(frozen=True, slots=True)
class Sum:
    left: Source
    right: Source
    subtract: bool


Source = Path | Constant | Otherwise | Joined | Sum


@dataclass(frozen=True, slots=True)
class Change:
    """One change of an item. source: None for "remove"; a Constant for "add" and "delete"."""

    action: Literal["set", "remove", "add", "delete"]
    path: Path
    source: Source | None = None


@dataclass(slots=True)
class Substitutions:
    """What stands for #names and :values in all expressions of one request, and which of it was used."""

    names: dict[str, str] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, names: Any, values: Any) -> Substitutions:
        """Of ExpressionAttributeNames and …Values, None when absent. Raises DynamoError."""
        found = cls()
        total = 0
        for key, name in _entries("ExpressionAttributeNames", names, _SHORT_NAME):
            if not isinstance(name, str):
                raise malformed("ExpressionAttributeNames holds something that is no string")
            if not name:
                raise invalid("ExpressionAttributeNames contains invalid value: Empty attribute name")
            total += text_size(key) + text_size(name)
            found.names[key] = name
        for key, value in _entries("ExpressionAttributeValues", values, _SHORT_VALUE):
            found.values[key] = parse_value(value)
        if total > _SUBSTITUTIONS_BYTES_MAX:
            raise invalid("ExpressionAttributeNames exceeds max size")
        return found

    def check_all_used(self) -> None:
        """Raises DynamoError. Called once every expression of the request was parsed."""
        for kind, held in (("Names", self.names), ("Values", self.values)):
            if idle := sorted(set(held) - self.used):
                raise invalid(
                    f"Value provided in ExpressionAttribute{kind} unused in expressions: keys: {{{', '.join(idle)}}}"
                )


def _entries(member: str, given: Any, pattern: re.Pattern[str]) -> list[tuple[str, Any]]:
    if given is None:
        return []
    if not isinstance(given, dict):
        raise malformed(f"{member} must be a map")
    if not given:
        raise invalid(f"{member} must not be empty")
    for key in given:
        if not pattern.fullmatch(key):
            raise invalid(f'{member} contains invalid key: Syntax error; key: "{key[:255]}"')
    return list(given.items())


def parse_condition(text: Any, substitutions: Substitutions, member: str = "ConditionExpression") -> Condition:
    """Raises DynamoError. member: what the request calls the expression."""
    parser = _Parser(text, substitutions, member)
    tree = parser.condition(0)
    parser.end()
    return tree


def parse_update(text: Any, substitutions: Substitutions) -> tuple[Change, ...]:
    """Never empty; no two paths overlap. Raises DynamoError."""
    parser = _Parser(text, substitutions, "UpdateExpression")
    changes = parser.update()
    parser.check_clashes([change.path for change in changes])
    return tuple(changes)


def parse_projection(text: Any, substitutions: Substitutions) -> tuple[Path, ...]:
    """Never empty; no two paths overlap. Raises DynamoError."""
    parser = _Parser(text, substitutions, "ProjectionExpression")
    paths = [parser.path()]
    while parser.take(","):
        paths.append(parser.path())
    parser.end()
    parser.check_clashes(paths)
    return tuple(paths)


class _Parser:
    """Tokens of one expression and how far they are read."""

    def __init__(self, text: Any, substitutions: Substitutions, member: str) -> None:
        if not isinstance(text, str):
            raise malformed(f"{member} must be a string")
        self._member = member
        self._substitutions = substitutions
        self._at = 0
        self._operators = 0
        if not text.strip():
            raise self._refusal("The expression can not be empty;")
        if (size := len(text.encode("utf-8", "surrogatepass"))) > LENGTH_MAX:
            raise self._refusal(f"Expression size has exceeded the maximum allowed size; expression size: {size}")
        self._tokens = self._split(text)

    def _split(self, text: str) -> list[str]:
        tokens, at, end = [], 0, len(text.rstrip())
        while at < end:
            found = _TOKEN.match(text, at)
            if found is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise self._refusal(f'Syntax error; token: "{text[at]}", near: "{text[max(at - 8, 0): at + 8]}"')
            tokens.append(found.group("word") or found.group("sign"))
            at = found.end()
        return tokens

    def _refusal(self, why: str) -> DynamoError:
        return invalid(f"Invalid {self._member}: {why}")

    def _unexpected(self) -> NoReturn:
        token = self._peek() or "<EOF>"
        near = " ".join(self._tokens[max(self._at - 1, 0) : self._at + 2])
        raise self._refusal(f'Syntax error; token: "{token}", near: "{near}"')

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else _END

    def take(self, token: str) -> bool:
        if self._peek() != token:
            return False
        self._at += 1
        return True

    def _take_word(self, word: str) -> bool:
        """Key words may be written small."""
        if self._peek().upper() != word:
            return False
        self._at += 1
        return True

    def _expect(self, token: str) -> None:
        if not self.take(token):
            self._unexpected()

    def end(self) -> None:
        if self._peek() != _END:
            self._unexpected()

    def _count(self) -> None:
        self._operators += 1
        if self._operators > _OPERATORS_MAX:
            raise self._refusal(
                f"The expression contains too many operators; operator count: {self._operators}, "
                f"maximum operator count: {_OPERATORS_MAX}"
            )

    def _check_depth(self, depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise self._refusal("The expression is nested too deeply")

    def check_clashes(self, paths: list[Path]) -> None:
        if (clash := clashes(paths)) is not None:
            kind, one, two = clash
            words = "overlap" if kind == "overlap" else "conflict"
            raise self._refusal(
                f"Two document paths {words} with each other; must remove or rewrite one of these paths; "
                f"path one: {one}, path two: {two}"
            )

    # Conditions.

    def condition(self, depth: int) -> Condition:
        self._check_depth(depth)
        parts = [self._conjunction(depth)]
        while self._take_word("OR"):
            self._count()
            parts.append(self._conjunction(depth))
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def _conjunction(self, depth: int) -> Condition:
        parts = [self._negation(depth)]
        while self._take_word("AND"):
            self._count()
            parts.append(self._negation(depth))
        return parts[0] if len(parts) == 1 else Every(tuple(parts))

    def _negation(self, depth: int) -> Condition:
        self._check_depth(depth)
        if self._take_word("NOT"):
            self._count()
            return Negated(self._negation(depth + 1))
        if self.take("("):
            inner = self.condition(depth + 1)
            self._expect(")")
            return inner
        if self._peek(1) == "(" and self._peek() != "size":
            return self._test()
        return self._comparison()

    def _test(self) -> Condition:
        name = self._peek()
        if name not in _ARITY:
            if _NAME.fullmatch(name):
                raise self._refusal(f"Invalid function name; function: {name}")
            self._unexpected()
        self._at += 2
        self._count()
        operands = [self._operand()]
        while self.take(","):
            operands.append(self._operand())
        self._expect(")")
        if len(operands) != _ARITY[name]:
            raise self._refusal(
                f"Incorrect number of operands for operator or function; operator or function: {name}, "
                f"number of operands: {len(operands)}"
            )
        subject = operands[0]
        argument = operands[1] if len(operands) > 1 else None
        if name != "contains" and not isinstance(subject, Path):
            raise self._refusal(
                f"Operator or function requires a document path; operator or function: {name}"
            )
        if name == "begins_with":
            self._check_kind(name, argument, ("S", "B"))
        elif name == "attribute_type":
            self._check_kind(name, argument, ("S",))
            if not isinstance(argument, Constant):
                raise self._refusal("The second operand of attribute_type must be a value")
            if argument.value["S"] not in TYPES:
                raise self._refusal(
                    f"Invalid attribute type name found; type: {argument.value['S'][:64]}, "
                    f"valid types: {{{','.join(TYPES)}}}"
                )
        elif argument is not None and subject == argument:
            self._same(name, subject)
        return Test(name, subject, argument)

    def _same(self, operator: str, operand: Operand) -> NoReturn:
        raise self._refusal(
            "The first operand must be distinct from the remaining operands for this operator or function; "
            f"operator: {operator}, first operand: {operand if isinstance(operand, Path) else 'the same'}"
        )

    def _comparison(self) -> Condition:
        left = self._operand()
        if (operator := self._peek()) in _COMPARATORS:
            self._at += 1
            self._count()
            right = self._operand()
            if isinstance(left, Path) and left == right:
                self._same(operator, left)
            if operator not in ("=", "<>"):
                for side in (left, right):
                    self._check_kind(operator, side, ("S", "N", "B"))
            return Compare(operator, left, right)
        if self._take_word("BETWEEN"):
            return self._between(left)
        if self._take_word("IN"):
            self._count()
            self._expect("(")
            choices = [self._operand()]
            while self.take(","):
                choices.append(self._operand())
            self._expect(")")
            if len(choices) > _CHOICES_MAX:
                raise self._refusal(
                    "The IN operator is provided with too many operands; "
                    f"number of operands: {len(choices)}, maximum: {_CHOICES_MAX}"
                )
            return Among(left, tuple(choices))
        return self._unexpected()

    def _between(self, subject: Operand) -> Condition:
        self._count()
        low = self._operand()
        if not self._take_word("AND"):
            self._unexpected()
        high = self._operand()
        for bound in (low, high):
            self._check_kind("BETWEEN", bound, ("S", "N", "B"))
        if isinstance(low, Constant) and isinstance(high, Constant):
            order = compare(low.value, high.value)
            if order is None:
                raise self._refusal(
                    "The BETWEEN operator requires same data type for lower and upper bounds; "
                    f"lower bound operand: AttributeValue: {_shown(low.value)}, "
                    f"upper bound operand: AttributeValue: {_shown(high.value)}"
                )
            if order > 0:
                raise self._refusal(
                    "The BETWEEN operator requires upper bound to be greater than or equal to lower bound; "
                    f"lower bound operand: AttributeValue: {_shown(low.value)}, "
                    f"upper bound operand: AttributeValue: {_shown(high.value)}"
                )
        return Between(subject, low, high)

    def _check_kind(self, operator: str, operand: Operand | None, kinds: tuple[str, ...]) -> None:
        if isinstance(operand, Constant) and (kind := kind_of(operand.value)) not in kinds:
            raise self._refusal(
                f"Incorrect operand type for operator or function; operator or function: {operator}, "
                f"operand type: {kind}"
            )

    def _operand(self) -> Operand:
        token = self._peek()
        if token.startswith(":"):
            return self._constant()
        if token == "size" and self._peek(1) == "(":
            self._at += 2
            self._count()
            path = self._operand()
            self._expect(")")
            if not isinstance(path, Path):
                raise self._refusal("Operator or function requires a document path; operator or function: size")
            return Size(path)
        if self._peek(1) == "(" and _NAME.fullmatch(token):
            words = "is not allowed to be used this way in an expression" if token in _ARITY else "does not exist"
            raise self._refusal(f"The function {words}; function: {token}")
        return self.path()

    def _constant(self) -> Constant:
        name = self._peek()
        if not _SHORT_VALUE.fullmatch(name):
            self._unexpected()
        self._at += 1
        try:
            value = self._substitutions.values[name]
        except KeyError:
            raise self._refusal(
                f"An expression attribute value used in expression is not defined; attribute value: {name}"
            ) from None
        self._substitutions.used.add(name)
        return Constant(value, name)

    def path(self) -> Path:
        parts: list[str | int] = [self._attribute()]
        while True:
            if self.take("."):
                parts.append(self._attribute())
            elif self.take("["):
                digits = self._peek()
                if not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
                    self._unexpected()
                self._at += 1
                self._expect("]")
                parts.append(int(digits))
            else:
                break
            if len(parts) > _PATH_PARTS_MAX:
                raise self._refusal("The document path has too many nesting elements")
        return Path(tuple(parts))

    def _attribute(self) -> str:
        token = self._peek()
        if token.startswith("#"):
            self._at += 1
            try:
                name = self._substitutions.names[token]
            except KeyError:
                raise self._refusal(
                    f"An expression attribute name used in the document path is not defined; attribute name: {token}"
                ) from None
            self._substitutions.used.add(token)
            return name
        if not _NAME.fullmatch(token):
            self._unexpected()
        self._at += 1
        return token

    # Updates.

    def update(self) -> list[Change]:
        changes: list[Change] = []
        seen: set[str] = set()
        while (word := self._peek().upper()) != _END:
            if word not in _CLAUSES:
                self._unexpected()
            if word in seen:
                raise self._refusal(f'The "{word}" section can only be used once in an update expression;')
            seen.add(word)
            self._at += 1
            read = {"SET": self._set, "REMOVE": self._remove, "ADD": self._add, "DELETE": self._delete}[word]
            changes.append(read())
            while self.take(","):
                changes.append(read())
        return changes

    def _set(self) -> Change:
        path = self.path()
        self._expect("=")
        self._count()
        source = self._source(0)
        if (sign := self._peek()) in ("+", "-"):
            self._at += 1
            self._count()
            right = self._source(0)
            for side in (source, right):
                if isinstance(side, Constant) and "N" not in side.value:
                    self._wrong_kind(sign, side)
            source = Sum(source, right, sign == "-")
        return Change("set", path, source)

    def _source(self, depth: int) -> Source:
        self._check_depth(depth)
        token = self._peek()
        if self.take("("):
            inner = self._source(depth + 1)
            self._expect(")")
            return inner
        if token.startswith(":"):
            return self._constant()
        if self._peek(1) != "(":
            return self.path()
        if token not in ("if_not_exists", "list_append"):
            if not _NAME.fullmatch(token):
                self._unexpected()
            words = "is not allowed in an update expression" if token in {*_ARITY, "size"} else "does not exist"
            raise self._refusal(f"The function {words}; function: {token}")
        self._at += 2
        self._count()
        left = self._source(depth + 1)
        self._expect(",")
        right = self._source(depth + 1)
        self._expect(")")
        if token == "if_not_exists":
            if not isinstance(left, Path):
                raise self._refusal(
                    "Operator or function requires a document path; operator or function: if_not_exists"
                )
            return Otherwise(left, right)
        for side in (left, right):
            if isinstance(side, Constant) and "L" not in side.value:
                self._wrong_kind(token, side)
        return Joined(left, right)

    def _wrong_kind(self, operator: str, operand: Constant) -> NoReturn:
        raise self._refusal(
            f"Incorrect operand type for operator or function; operator or function: {operator}, "
            f"operand type: {kind_of(operand.value)}"
        )

    def _remove(self) -> Change:
        self._count()
        return Change("remove", self.path())

    def _add(self) -> Change:
        return self._set_operation("add", ("N", *SETS))

    def _delete(self) -> Change:
        return self._set_operation("delete", tuple(SETS))

    def _set_operation(self, action: Literal["add", "delete"], kinds: tuple[str, ...]) -> Change:
        path = self.path()
        self._count()
        operand = self._constant()
        if (kind := kind_of(operand.value)) not in kinds:
            raise self._refusal(
                f"Incorrect operand type for operator or function; operator: {action.upper()}, "
                f"operand type: {TYPE_NAMES[kind]}, typeSet: ALLOWED_FOR_{action.upper()}_OPERAND"
            )
        return Change(action, path, operand)


def _shown(value: Value) -> str:
    kind = kind_of(value)
    return f"{{{kind}:{str(value[kind])[:64]}}}"
