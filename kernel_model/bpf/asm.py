"""kernel/bpf/disasm.c (v5.10), read backwards: a small assembler for the language of that listing

A program is text, one instruction a line, as the verifier log and bpftool print it:

    r1 = map[outer]             ; a map by name, see `assemble`
    r2 = r10
    r2 += -4
    *(u32 *)(r10 -4) = 0
    call bpf_map_lookup_elem
    if r0 == 0 goto out         // a label, or a distance: goto +6, goto pc+6
    r0 = *(u64 *)(r0 +0)
    out:
    exit

Beyond the kernel's listing there are labels (for jumps and for `call function`), `r1 = 5 ll` for a
64-bit constant, `map_value[name]+8` for the address of a map's value, and numbers in decimal or
hexadecimal wherever a number may stand. `w` registers make an operation 32 bits wide. An index and
an opcode in front (`  12: (61)`) are skipped; only `(18)` tells the 64-bit constant `r1 = 0x5`
from a move.

Two readings follow the kernel's printing. The immediate of a jump may be written unsigned, so
`if r1 == 0xffffffff` compares with -1. And `r1 = -1` is a move of 32 bits, sign-extended, whereas a
constant that needs more than that must say `ll`.

Not modelled: BPF_PSEUDO_BTF_ID, which the kernel prints as a bare constant; maps by name do not
become relocations, they are resolved at once.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from kernel_model.bpf.disasm import ALU_STRING, JMP_STRING, LDST_STRING
from kernel_model.bpf.helper_ids import BPF_FUNC, func_id_name
from kernel_model.bpf.insn import (
    BPF_ALU32_IMM,
    BPF_ALU32_REG,
    BPF_ALU64_IMM,
    BPF_ALU64_REG,
    BPF_CALL_REL,
    BPF_DW,
    BPF_EMIT_CALL,
    BPF_ENDIAN,
    BPF_EXIT_INSN,
    BPF_JMP32_IMM,
    BPF_JMP32_REG,
    BPF_JMP_A,
    BPF_JMP_IMM,
    BPF_JMP_REG,
    BPF_LD_ABS,
    BPF_LD_IMM64,
    BPF_LD_IND,
    BPF_LD_MAP_FD,
    BPF_LD_MAP_VALUE,
    BPF_LDX_MEM,
    BPF_NEG,
    BPF_ST_MEM,
    BPF_STX_MEM,
    BPF_STX_XADD,
    BPF_TO_BE,
    BPF_TO_LE,
    Insn,
    InsnError,
)
from sim.errors import MisuseError


class AsmError(MisuseError, ValueError):
    """A line that is no instruction; the message says which line and what was expected."""

    def __init__(self, lineno: int, line: str, problem: str) -> None:
        super().__init__(f"line {lineno}: {line.strip()!r}: {problem}")
        self.lineno = lineno
        self.line = line
        self.problem = problem


def assemble(text: str, maps: Mapping[str, int] | None = None) -> tuple[Insn, ...]:
    """The program that `text` spells.

    `maps` gives the fd for each NAME in `map[NAME]` and `map_value[NAME]`; `map[fd:5]` needs none.
    Raises `AsmError` for the first line that cannot be read.
    """
    return _assemble(text, tuple((maps or {}).items()))


@lru_cache(maxsize=256)  # every execution of a workload assembles the same text
def _assemble(text: str, maps: tuple[tuple[str, int], ...]) -> tuple[Insn, ...]:
    statements, labels = _read(text)
    program: list[Insn] = []
    for statement in statements:
        scope = _Scope(len(program), labels, dict(maps))
        try:
            program += statement.form.build(statement.fields, scope)
        except InsnError as error:
            raise AsmError(statement.lineno, statement.line, str(error)) from None
    return tuple(program)


class _Scope(NamedTuple):
    here: int  # index of the instruction being built
    labels: Mapping[str, int]
    maps: Mapping[str, int]


_Fields = Mapping[str, str]
_Build = Callable[[_Fields, _Scope], Sequence[Insn]]


class _Piece(NamedTuple):
    field: str  # where the text goes, "" for a literal
    pattern: re.Pattern[str]
    called: str  # in messages


class _Form(NamedTuple):
    pieces: Sequence[_Piece]
    build: _Build
    size: int  # in instructions


class _Statement(NamedTuple):
    lineno: int
    line: str
    form: _Form
    fields: _Fields


# A line becomes tokens joined by single spaces, so that no pattern has to care about spacing:
# `*(u32 *)(r10 -4) = 0` is matched as `* ( u32 * ) ( r10 - 4 ) = 0`.

_UNSIGNED = r"(?:0[xX][0-9a-fA-F]+|\d+)"
_NUMBER = rf"(?:[-+] )?{_UNSIGNED}"
_SIGNED = rf"[-+] {_UNSIGNED}"
_NAME = r"[A-Za-z_.$][\w.$]*"
_MAP = (
    r"(?P<kind>map|map_value)\[(?P<name>[^]]+)\]"
    rf"(?P<element> \[ 0 \])?(?: \+ (?P<offset>{_UNSIGNED}))?"
)

_COLUMNS = re.compile(r"\s*(?:\d+:)?\s*(?:\((?P<opcode>[0-9a-fA-F]{2})\))?")
_COMMENT = re.compile(r";|//")
_TOKEN = re.compile(
    rf"map(?:_value)?\[[^]]*\]|s(?:>>=|>=|<=|>|<)|<<=|>>=|[-+*/|&%^<>=!]=|{_UNSIGNED}|{_NAME}|\S"
)
_LABEL = re.compile(rf"(?P<name>{_NAME}) :(?: |$)")


def _one_of(words: Mapping[int, str]) -> tuple[str, str]:
    return "|".join(map(re.escape, words.values())), "one of " + " ".join(words.values())


_PIECES: Final[Mapping[str, tuple[str, str]]] = {  # what it looks like, what to call it
    "REG": (r"[rw](?:10|\d)", "a register (r0 to r10, w0 to w10)"),
    "R": (r"r(?:10|\d)", "a register (r0 to r10)"),
    "R0": ("r0", "a register (r0 to r10)"),
    "NUM": (_NUMBER, "a number"),
    "OFF": (_SIGNED, "an offset such as +8 or -4"),
    "SIZE": _one_of(LDST_STRING),
    "ALU": _one_of(ALU_STRING),
    "CMP": _one_of(JMP_STRING),
    "SWAP": ("(?:be|le)(?:16|32|64)", "be16, be32, be64, le16, le32 or le64"),
    "TARGET": (rf"(?:pc )?{_SIGNED}|{_NAME}", "a label, +N or pc+N"),
    "CALLEE": (
        rf"pc {_SIGNED}|{_NUMBER}|{_NAME}(?: # {_NUMBER})?",
        "a label, pc+N, or the name or number of a helper",
    ),
    "MAP": (_MAP, "map[NAME] or map_value[NAME]+N"),
    "END": ("$", "the end of the line"),
}


def _form(shape: str, build: _Build, size: int = 1) -> _Form:
    """`if dst:REG op:CMP ...`: literal words, and fields with the piece that fills each."""
    pieces: list[_Piece] = []
    for word in (*shape.split(), ":END"):
        field, _, piece = word.rpartition(":")
        pattern, called = _PIECES.get(piece, (re.escape(piece), f"`{piece}`"))
        pieces.append(_Piece(field, re.compile(rf"(?:{pattern})(?= |$)"), called))
    return _Form(pieces, build, size)


def _read(text: str) -> tuple[list[_Statement], dict[str, int]]:
    """The statements, and the labels as indices of instructions."""
    statements: list[_Statement] = []
    labels: dict[str, int] = {}
    here = 0
    for lineno, line in enumerate(text.splitlines(), start=1):
        code = _COMMENT.split(line, maxsplit=1)[0]
        columns = _COLUMNS.match(code)
        assert columns is not None  # both columns are optional
        tokens = " ".join(_TOKEN.findall(code, columns.end()))
        while label := _LABEL.match(tokens):
            if label["name"] in labels:
                raise AsmError(lineno, line, f"there are two labels `{label['name']}`")
            labels[label["name"]] = here
            tokens = tokens[label.end() :]
        if columns["opcode"] == "18" and "map" not in tokens:
            tokens = f"{tokens.removesuffix(' ll')} ll"
        if tokens:
            form, fields = _parse(lineno, line, tokens)
            statements.append(_Statement(lineno, line, form, fields))
            here += form.size
    return statements, labels


def _parse(lineno: int, line: str, tokens: str) -> tuple[_Form, _Fields]:
    """The first form that fits, or an `AsmError` that quotes the forms that fit furthest."""
    furthest = 0
    expected: list[str] = []
    for form in _FORMS:
        fields: dict[str, str] = {}
        at = 0
        for piece in form.pieces:
            match = piece.pattern.match(tokens, at)
            if match is None:
                if at > furthest:
                    furthest, expected = at, []
                if at == furthest and piece.called not in expected:
                    expected.append(piece.called)
                break
            fields[piece.field] = match[0]
            at = match.end() + 1
        else:
            return form, fields
    where = f"after `{tokens[: furthest - 1]}`" if furthest else "at the start"
    *others, last = expected
    either = f"{', '.join(others)} or {last}" if others else last
    raise AsmError(lineno, line, f"expected {either}, {where}")


def _number(text: str) -> int:
    digits = text.replace(" ", "")
    return int(digits, 16 if "x" in digits.lower() else 10)


def _narrow(text: str) -> int:
    """An immediate that will be sign-extended to 64 bits, and must mean what it says."""
    value = _number(text)
    if value >= 1 << 31:
        raise InsnError(f"{value:#x} does not fit in 32 bits signed; `r1 = {value:#x} ll` loads it")
    return value


def _reg(text: str) -> int:
    return int(text[1:])


def _is_reg(text: str) -> bool:
    return text[0] in "rw"


def _same(fields: _Fields, rule: str) -> None:
    if fields["dst"] != fields["src"]:
        raise InsnError(f"{rule}, but `{fields['dst']}` is not `{fields['src']}`")


def _distance(target: str, scope: _Scope) -> int:
    """How far a jump or call goes, counted from the next instruction."""
    if target in scope.labels:
        return scope.labels[target] - scope.here - 1
    if re.match(_NAME, target) and not target.startswith("pc "):
        raise InsnError(f"there is no label `{target}`")
    return _number(target.removeprefix("pc "))


_ALU_OPS = {text: op for op, text in ALU_STRING.items()}
_JMP_OPS = {text: op for op, text in JMP_STRING.items()}
_SIZES = {text: size for size, text in LDST_STRING.items()}
_HELPERS = {func_id_name(func_id): func_id for func_id in BPF_FUNC}


def _both_wide(fields: _Fields) -> bool:
    """Is this a 64-bit operation? Both registers have to say the same."""
    dst, src = fields["dst"], fields["src"]
    if _is_reg(src) and src[0] != dst[0]:
        raise InsnError(f"`{dst}` and `{src}` differ in width: write two r or two w registers")
    return dst[0] == "r"


def _alu(fields: _Fields, _: _Scope) -> Sequence[Insn]:
    op, dst, src = _ALU_OPS[fields["op"]], _reg(fields["dst"]), fields["src"]
    wide = _both_wide(fields)
    if _is_reg(src):
        return [(BPF_ALU64_REG if wide else BPF_ALU32_REG)(op, dst, _reg(src))]
    return [BPF_ALU64_IMM(op, dst, _narrow(src)) if wide else BPF_ALU32_IMM(op, dst, _number(src))]


def _neg(fields: _Fields, _: _Scope) -> Sequence[Insn]:
    _same(fields, "a negation works in place")
    return [
        (BPF_ALU64_IMM if _both_wide(fields) else BPF_ALU32_IMM)(BPF_NEG, _reg(fields["dst"]), 0)
    ]


def _swap(fields: _Fields, _: _Scope) -> Sequence[Insn]:
    _same(fields, "a byte swap works in place")
    direction = BPF_TO_BE if fields["order"].startswith("be") else BPF_TO_LE
    return [BPF_ENDIAN(direction, _reg(fields["dst"]), int(fields["order"][2:]))]


def _if(fields: _Fields, scope: _Scope) -> Sequence[Insn]:
    op, dst, src = _JMP_OPS[fields["op"]], _reg(fields["dst"]), fields["src"]
    off = _distance(fields["to"], scope)
    wide = _both_wide(fields)
    if _is_reg(src):
        return [(BPF_JMP_REG if wide else BPF_JMP32_REG)(op, dst, _reg(src), off)]
    return [(BPF_JMP_IMM if wide else BPF_JMP32_IMM)(op, dst, _number(src), off)]


def _call(fields: _Fields, scope: _Scope) -> Sequence[Insn]:
    name, _, number = fields["to"].partition(" # ")
    if number:
        func_id = _number(number)
        if func_id_name(func_id) != name:
            raise InsnError(f"helper {func_id} is called `{func_id_name(func_id)}`")
        return [BPF_EMIT_CALL(func_id)]
    if name in scope.labels or name.startswith("pc "):
        return [BPF_CALL_REL(_distance(name, scope))]
    if name in _HELPERS:
        return [BPF_EMIT_CALL(_HELPERS[name])]
    if re.match(_NAME, name):
        raise InsnError(f"`{name}` is no label, and no helper of v5.10")
    return [BPF_EMIT_CALL(_number(name))]


def _ld_map(fields: _Fields, scope: _Scope) -> Sequence[Insn]:
    match = re.fullmatch(_MAP, fields["map"])
    assert match is not None  # the form matched
    name, offset, dst = match["name"], match["offset"], _reg(fields["dst"])
    if re.fullmatch(r"fd:-?\d+", name):
        fd = int(name.removeprefix("fd:"))
    elif name in scope.maps:
        fd = scope.maps[name]
    else:
        known = ", ".join(scope.maps) or "none"
        raise InsnError(f"there is no map `{name}`; known maps: {known}")
    if match["kind"] == "map_value" or match["element"]:
        return BPF_LD_MAP_VALUE(dst, fd, _number(offset or "0"))
    if offset:
        raise InsnError(f"a map has no offset, its value has: map_value[{name}]+{offset}")
    return BPF_LD_MAP_FD(dst, fd)


def _st(fields: _Fields, _: _Scope) -> Sequence[Insn]:
    size, dst, src = _SIZES[fields["size"]], _reg(fields["dst"]), fields["src"]
    off = _number(fields["off"])
    if _is_reg(src):
        return [BPF_STX_MEM(size, dst, _reg(src), off)]
    return [BPF_ST_MEM(size, dst, off, _narrow(src) if size == BPF_DW else _number(src))]


def _xadd(fields: _Fields, _: _Scope) -> Sequence[Insn]:
    size, off = _SIZES[fields["size"]], _number(fields["off"])
    return [BPF_STX_XADD(size, _reg(fields["dst"]), _reg(fields["src"]), off)]


def _ldx(fields: _Fields, _: _Scope) -> Sequence[Insn]:
    size, off = _SIZES[fields["size"]], _number(fields["off"])
    return [BPF_LDX_MEM(size, _reg(fields["dst"]), _reg(fields["src"]), off)]


_FORMS: Final = (
    _form("exit", lambda f, s: [BPF_EXIT_INSN()]),
    _form("goto to:TARGET", lambda f, s: [BPF_JMP_A(_distance(f["to"], s))]),
    _form("if dst:REG op:CMP src:REG goto to:TARGET", _if),
    _form("if dst:REG op:CMP src:NUM goto to:TARGET", _if),
    _form("call to:CALLEE", _call),
    _form("dst:R = imm:NUM ll", lambda f, s: BPF_LD_IMM64(_reg(f["dst"]), _number(f["imm"])), 2),
    _form("dst:R = map:MAP", _ld_map, 2),
    _form("dst:R = order:SWAP src:R", _swap),
    _form("dst:REG = - src:REG", _neg),
    _form("dst:REG op:ALU src:REG", _alu),
    _form("dst:REG op:ALU src:NUM", _alu),
    _form("dst:R = * ( size:SIZE * ) ( src:R off:OFF )", _ldx),
    _form(
        ":R0 = * ( size:SIZE * ) skb [ imm:NUM ]",
        lambda f, s: [BPF_LD_ABS(_SIZES[f["size"]], _number(f["imm"]))],
    ),
    _form(
        ":R0 = * ( size:SIZE * ) skb [ src:R + imm:NUM ]",
        lambda f, s: [BPF_LD_IND(_SIZES[f["size"]], _reg(f["src"]), _number(f["imm"]))],
    ),
    _form("* ( size:SIZE * ) ( dst:R off:OFF ) = src:R", _st),
    _form("* ( size:SIZE * ) ( dst:R off:OFF ) = src:NUM", _st),
    _form("lock * ( size:SIZE * ) ( dst:R off:OFF ) += src:R", _xadd),
)
