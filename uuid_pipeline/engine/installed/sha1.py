"""SHA-1 as a PL/pgSQL function, for servers without pgcrypto and uuid-ossp: its text is generated, rounds unrolled.

PL/pgSQL pays for each statement, not for each operator: one assignment a round and register, no arrays, no loop.
"""

_MASK = "4294967295"
_CONSTANTS = (1518500249, 1859775393, 2400959708, 3395469782)
_REGISTERS = ("a", "b", "c", "d", "e")
_START = ("1732584193", "4023233417", "2562383102", "271733878", "3285377520")


def _mixed(round_no: int, b: str, c: str, d: str) -> str:
    if round_no < 20:
        return f"({d} # ({b} & ({c} # {d})))"
    if 40 <= round_no < 60:
        return f"(({b} & {c}) | ({d} & ({b} | {c})))"
    return f"({b} # {c} # {d})"


def _round(round_no: int) -> list[str]:
    a, b, c, d, e = (_REGISTERS[(i - round_no) % 5] for i in range(5))
    word = f"w{round_no % 16}"
    lines = []
    if round_no >= 16:
        others = " # ".join(f"w{(round_no - back) % 16}" for back in (3, 8, 14, 16))
        lines = [f"x := {others};", f"{word} := ((x << 1) | (x >> 31)) & {_MASK};"]
    constant = _CONSTANTS[round_no // 20]
    return [
        *lines,
        f"{e} := ((({a} << 5) | ({a} >> 27)) + {_mixed(round_no, b, c, d)} + {e} + {constant} + {word}) & {_MASK};",
        f"{b} := (({b} << 30) | ({b} >> 2)) & {_MASK};",
    ]


def plpgsql_body() -> str:
    """The body of a function from bytea to bytea (20 bytes)."""
    words = "; ".join(f"w{i} bigint" for i in range(16))
    loads = "\n        ".join(f"w{i} := ('x' || substr(block, {8 * i + 1}, 8))::bit(32)::bigint;" for i in range(16))
    saved = "\n        ".join(f"h{i} := {register};" for i, register in enumerate(_REGISTERS))
    rounds = "\n        ".join(line for number in range(80) for line in _round(number))
    added = "\n        ".join(f"{register} := ({register} + h{i}) & {_MASK};" for i, register in enumerate(_REGISTERS))
    starts = "\n    ".join(f"{register} bigint := {start};" for register, start in zip(_REGISTERS, _START, strict=True))
    digest = " || ".join(f"lpad(to_hex({register}), 8, '0')" for register in _REGISTERS)
    return f"""
DECLARE
    {starts}
    h0 bigint; h1 bigint; h2 bigint; h3 bigint; h4 bigint; x bigint;
    {words};
    bytes integer := length($1);
    zeros integer := (119 - bytes % 64) % 64;
    padded text := encode($1, 'hex') || '80' || repeat('00', zeros) || lpad(to_hex(8 * bytes), 16, '0');
    block text;
BEGIN
    FOR number IN 0..length(padded) / 128 - 1 LOOP
        block := substr(padded, 128 * number + 1, 128);
        {loads}
        {saved}
        {rounds}
        {added}
    END LOOP;
    RETURN decode({digest}, 'hex');
END
"""
