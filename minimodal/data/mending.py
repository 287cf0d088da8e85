"""Captions from the web, mended as the package ftfy does it for CLIP's tokenizer.

What ftfy does by rule is done here too: entities, controls, ligatures, full width, curly quotes;
of its guesses at text that was decoded with the wrong character set ("cafÃ©" for "café") only the
plain one: a line whose Windows-1252 or Latin-1 bytes are UTF-8 throughout. For a text that still
looks so, a warning says that the original may read it otherwise.

A text in, a text in small letters out. Read nothing before.
"""

import html
import re
import unicodedata
import warnings
from contextlib import suppress
from html.entities import html5

from minimodal.data.tokenizer import first_words

# --- what ftfy does by rule -----------------------------------------------------------------------

# ASCII without these has nothing to mend: entities, control characters that are no blanks.
TO_MEND = re.compile("[&\x00-\x08\x0b\x0e-\x1f\x7f]")
ENTITY = re.compile("&#?[0-9A-Za-z]{1,24};")
TERMINAL_ESCAPE = re.compile("\x1b\\[[\\d;]*[a-zA-Z]")
CONTROLS = dict.fromkeys(
    (*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF,
     *range(0xFFF9, 0xFFFD))
)  # fmt: skip


def windows_1252(byte: int) -> str:
    """The character of a byte. Five have none: like a browser, take Latin-1's."""
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


# What is written another way: Latin ligatures, full width, curly quotes, C1 controls.
COMPATIBLE = [chr(i) for i in range(0xFF01, 0xFFF0)] + list("ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬆ")
STANDARD_FORMS = {
    **{ord(char): unicodedata.normalize("NFKC", char) for char in COMPATIBLE},
    **{ord("ﬅ"): "ſt", ord("ŉ"): "'n"},
    **dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
}
C1 = {byte: windows_1252(byte) for byte in range(0x80, 0xA0)}
STANDARD_FORMS |= {byte: STANDARD_FORMS.get(ord(char), char) for byte, char in C1.items()}


def resolve_entity(match: re.Match[str]) -> str:
    """An HTML entity as its character; also names all in capitals, which no browser knows."""
    entity, name = match[0], match[0][1:]
    if name[0] == "#":
        character = html.unescape(entity)
        return entity if ";" in character else character
    if name in html5:
        return html5[name]
    if name == name.upper() and name.lower() in html5 and html.unescape(entity) == entity:
        return html5[name.lower()].upper()
    return entity


def mend_line(line: str, *, entities: bool) -> str:
    """Apply the fixes in ftfy's order until nothing changes.

    Its line breaks and wide blanks are left out: all blanks become one afterwards.
    """
    before = None
    while line != before:
        before = line
        if entities:
            line = ENTITY.sub(resolve_entity, line)
        line = repair_mojibake(line).translate(STANDARD_FORMS)
        # Two halves of a UTF-16 pair become their character, a lone half becomes U+FFFD.
        line = line.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        line = TERMINAL_ESCAPE.sub("", line).translate(CONTROLS)
        line = unicodedata.normalize("NFC", line)
    return line


def mend(text: str) -> str:
    """The rules of ftfy.fix_text, line by line."""
    lines, entities = [], True
    for line in text.split("\n"):
        entities = entities and "<" not in line  # HTML itself is left alone, from there on
        lines.append(mend_line(line, entities=entities))
    return "\n".join(lines)


def clean(text: str) -> str:
    """A caption mended, its entities resolved, in small letters; blanks stay as they are."""
    if text.isascii() and not TO_MEND.search(text):
        return text.lower()
    # Twice, as in the original: captions from the web are often escaped twice.
    return html.unescape(html.unescape(mend(text))).lower()


# --- text decoded with the wrong character set ----------------------------------------------------

BYTE_OF = {windows_1252(byte): byte for byte in range(256)}


# Plausible as it stands, though its bytes are UTF-8: a capital with the punctuation behind it
# (CAFÉ’S, OLÉ…). The last is a "™" read wrongly, which ftfy happens to leave alone.
PLAUSIBLE = re.compile("[Â-ß][’…]|[Ä-ÍÏÑ-ß][”–—™›®»·´\xa0\xad]|â„¢")
# One character that stands for a byte from 0x80 to 0xBF in either set.
EITHER = {f(byte) for byte in range(0x80, 0xC0) for f in (chr, windows_1252)}
REST = f"[{re.escape(''.join(sorted(EITHER)))}]"
MOJIBAKE = re.compile(f"[Â-ß]{REST}|[à-ï]{REST}{{2}}|[ð-ô]{REST}{{3}}|(?:^|[a-z]\\s?)[ÂÃ] ")


def repair_mojibake(text: str) -> str:
    """Undo wrong decoding where all of a text is the UTF-8 that its Latin-1 or Windows-1252 bytes
    are, and reads hardly as anything else; it may have happened twice."""
    while not text.isascii() and MOJIBAKE.search(PLAUSIBLE.sub("", text)):
        for table in ({}, BYTE_OF):
            with suppress(ValueError):  # of bytes(): not of this set; of decode(): no UTF-8
                text = bytes(table.get(char, ord(char)) for char in text).decode("utf-8")
                break
        else:
            warnings.warn(
                f"'{first_words(text)}' looks as if it was decoded with the wrong character set; "
                "the original tokenizer may mend it and give other ids",
                stacklevel=2,
            )
            break
    return text
