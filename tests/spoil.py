"""Changes of files at random: bits, numbers, words, lines, holes, encodings."""

import random
import re
import struct

NUMBERS = (0, 1, -1, 2, 7, 255, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**63 - 1, -(2**63))
VALUES = (
    None,
    True,
    0,
    -1,
    10**30,
    1e300,
    float("nan"),
    float("-inf"),
    "",
    "x",
    "-1",
    [],
    {},
    [[]],
)
WORDS = (
    b"nan", b"inf", b"-inf", b"1e308", b"-1e999", b"99999999999999999999", b"-1", b"0", b"''",
    b".", b"\xff\xfe", b"\x00", b"\n", b"\r\n", b"\xe2\x80\xa8", b"_", b"#", b";", b"\n;\n",
    b"data_", b"data_particles\n", b"save_", b"1@", b"0@.", b"000001@/dev/zero", b"null", b"true",
    b"[]", b"{}", b'"', b"[" * 3000, b"TER\n", b"ENDMDL\n", b"MODEL 1\n", b"ATOM  ", b"\x1f\x8b",
    b"loop_", b"?",
)  # fmt: skip


def spoiled(raw: bytes, rng: random.Random) -> bytes:
    """One to four changes of a file."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        raw = rng.choice(CHANGES)(raw, rng)
    return raw


def rearranged(content, rng: random.Random):
    """JSON or the like with another value, or none, in one to three places."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = _elsewhere(content, rng)
    return content


def _elsewhere(content, rng):
    if isinstance(content, dict | list) and content and rng.random() < 0.8:
        key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
        new = content.copy()
        if rng.random() < 0.2:
            del new[key]
        else:
            new[key] = _elsewhere(content[key], rng)
        return new
    other = rng.choice(VALUES)
    return rng.choice((other, other, [content], {"x": content}, [content, content]))


def _bits(raw, rng):
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def _head(raw, rng):
    """A number in the first kilobyte, where binary formats keep sizes."""
    code = rng.choice(("<i", ">i", "<q", "<h", "<f", "<d"))
    value = rng.choice((*NUMBERS, rng.getrandbits(16)))
    if code[1] in "fd":
        value = rng.choice((float("nan"), float("inf"), -1.0, 1e30, 0.0))
    else:
        value = (value + 2 ** (8 * struct.calcsize(code) - 1)) % 2 ** (8 * struct.calcsize(code))
        value -= 2 ** (8 * struct.calcsize(code) - 1)
    at = 4 * rng.randrange(max(1, min(256, len(raw) // 4)))
    return raw[:at] + struct.pack(code, value) + raw[at + struct.calcsize(code) :]


def _cut(raw, rng):
    return raw[: rng.choice((0, 1, rng.randrange(len(raw) + 1), len(raw) - 1))]


def _hole(raw, rng):
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + raw[at + rng.choice((1, 4, 80, 1000)) :]


def _insert(raw, rng):
    at = rng.randrange(len(raw) + 1)
    new = rng.choice((rng.choice(WORDS), rng.randbytes(rng.choice((1, 4, 300)))))
    return raw[:at] + new + raw[at:]


def _lines(raw, rng):
    lines = raw.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    if rng.random() < 0.5:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines[i:i] = lines[j : j + rng.choice((1, 1, 5))]
    return b"\n".join(lines)


def _word(raw, rng):
    """Another word in place of one, or of a number."""
    found = list(re.finditer(rng.choice((rb"[^\s,\[\]{}:]+", rb"-?\d[\d.e+-]*")), raw[:200_000]))
    if not found:
        return raw
    one = rng.choice(found)
    new = rng.choice((rng.choice(WORDS), str(rng.choice(NUMBERS)).encode(), rng.choice(found)[0]))
    return raw[: one.start()] + new + raw[one.end() :]


def _encoded(raw, rng):
    return raw.decode("latin1").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))


def _zeros(raw, rng):
    at, size = rng.randrange(len(raw) + 1), rng.choice((1, 8, 500))
    return raw[:at] + bytes([rng.choice((0, 255))]) * size + raw[at + size :]


def _safe(change):
    return lambda raw, rng: change(raw, rng) if raw else rng.choice(WORDS)


CHANGES = [
    _safe(change)
    for change in (_bits, _bits, _head, _cut, _hole, _insert, _insert, _lines, _word, _word, _word,
                   _encoded, _zeros)
]  # fmt: skip
