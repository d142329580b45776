"""The columns of a CSV of images: the four that are used, and which others may hold groups or splits by another name.

Why its own module: a column of patients that nobody reads is a leak between splits, and a warning about every column is
one that nobody reads either. So a name is a hint and the values decide: what is the same for all images, or another for
each, keeps nothing together and parts nothing. Values that only look alike part what belongs together, too. Used by
`rows.rows_of_csv`, and by `dataset.scan` for labels.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from edgemed.errors import one_line

COLUMNS = ("path", "label", "group", "split")
SPLITS = ("train", "validation", "calibration", "test")  # calibration is for who asks for it: see temperatures.py
HELD_OUT = SPLITS[1:]
_MEANT = {"group": "images are of one patient or lesion", "split": "images train and which test"}
_WORDS = {  # what a name of such a column holds, with spaces in place of all but letters
    "group": re.compile(
        r"patient|lesion|subject|volumes? ?(id|uid|no|number|name|index)$|\b(accession|animal|case|donor|exam"
        r"|examination|group|mrn|participant|person|pid|series|slide|specimen|study|studies|video|visit)s?"
        r" ?(id|uid|no|number|name|code|index)?$"
    ),
    "split": re.compile(
        r"split|subset|partition|\b(k|cv)?folds?\b|^sets?$|\btrain(ing)?( (val|valid|validation|test))*$"
    ),
}
_OFTEN = re.compile(r"\bid$|uid$|group$")  # of patients as well as of scanners: the number of values tells
_ATTRIBUTE = (
    "age", "sex", "gender", "race", "ethnicity", "weight", "height", "size", "diameter", "area", "volume", "count",
    "position", "orientation", "location", "localization", "site", "side", "view", "type", "stage", "grade", "score",
    "status", "diagnosis", "description", "comment", "modality", "date", "time", "year",
)  # fmt: skip
_SAID = re.compile(
    rf"(^| |patient|lesion|subject|study|series|exam|case)({'|'.join(_ATTRIBUTE)})( group)?$"
)
"""What is said of a patient or a study, and names neither: patient_age, StudyDate, lesion_type, age_group."""
_SPLIT_VALUES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "calibration"})
_NO_CODE = re.compile(r"[^A-Za-z]*|[^0-9]*")  # a number, a date, a word
_MINUS = "\u2212"  # the one dash that Unicode counts among the signs
_FEWEST = 8  # values that tell patients from sites where the name says nothing


def unused_columns(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """A warning where columns seem to hold groups, or splits, by another name.

    columns: the values of every column of the CSV, one per image, by its name in lower case.
    """
    meant = {name: _meant(name, [value.strip() for value in values if value.strip()])
             for name, values in columns.items() if name not in COLUMNS}  # fmt: skip
    warnings = []
    for column, what in _MEANT.items():
        names = [repr(one_line(name)) for name in columns if meant.get(name) == column]
        if names and column not in columns:
            are, if_it = ("column", "is not used; if it") if len(names) == 1 else ("columns", "are not used; if one")
            warnings.append(f"the {are} {', '.join(names)} {if_it} says which {what}, name it {column!r}.")
    return warnings


def _meant(name: str, values: Sequence[str]) -> str | None:
    """What a column of that name and of these values, none of them empty, may be: "group", "split" or neither."""
    different = set(values)
    if not 1 < len(different) < len(values):
        return None
    if {value.casefold() for value in different} <= _SPLIT_VALUES:
        return "split"
    words = re.sub(r"[^a-z]+", " ", name).strip()
    attribute = _SAID.search(words) is not None
    for column, pattern in _WORDS.items():
        if not attribute and (pattern.search(words) or difflib.get_close_matches(name, (column,), cutoff=0.8)):
            return column
    few = 0.2 * len(values) <= len(different) <= 0.9 * len(values)  # images of each value, as of patients
    coded = len(different) >= _FEWEST and not any(_NO_CODE.fullmatch(value) for value in different)
    return "group" if few and not attribute and (coded or _OFTEN.search(words)) else None


def written_alike(names: Iterable[str]) -> list[list[str]]:
    """Names that differ only in case, spaces, dashes, how a number is written, or in code points that show no other."""
    alike: dict[str | Decimal, list[str]] = {}
    for name in names:
        kinds = [(sign, unicodedata.category(sign)) for sign in unicodedata.normalize("NFKC", name)]
        plain = "".join("-" if kind == "Pd" or sign == _MINUS else sign for sign, kind in kinds if kind != "Cf")
        words = " ".join(plain.casefold().split())
        number = re.fullmatch(r"[+-]?\d+(\.\d*)?", words)
        alike.setdefault(Decimal(words) if number else words, []).append(name)
    return [names for names in alike.values() if len(names) > 1]


def groups_alike(rows: Mapping[str, int]) -> list[str]:
    """A warning where groups look alike. rows: the first row of each; groups name patients, so the warning does not."""
    alike = written_alike(rows)
    if not alike:
        return []
    pairs = ", ".join(f"{rows[first]} and {rows[second]}" for first, second, *_ in alike[:3])
    more = ", ..." if len(alike) > 3 else ""
    return [f"{sum(map(len, alike))} groups of the CSV look like another and are kept apart (rows {pairs}{more}): they "
            "differ in case, in spaces, in dashes, in code points or in how a number is written only; write them alike "
            "if they mean the same."]  # fmt: skip
