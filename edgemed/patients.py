"""Which DICOM files show one patient, without naming anyone.

Why: images of one patient on both sides of a split are a leak, and DICOM files say whose they are: by the patient's id,
and by the study, which is of one patient and outlasts the id: who removes names by PS3.15 Table E.1-1 empties PatientID
(action Z), but replaces StudyInstanceUID alike in all files of a study (action U). Nothing but the id, its issuer and
the study's UID is read; what is written are pseudonyms. Used through `dataset.scan`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from edgemed.dicom import is_dicom, parsed, reader_errors, require_pydicom

STATED = ("PatientID", "StudyInstanceUID")
_TAGS = (0x00100020, 0x00100021, 0x0020000D)  # the patient's id, who issued it, the study


def pseudonyms(files: Sequence[Path]) -> dict[Path, tuple[str, str]]:
    """The pseudonyms of the patient and the study of every DICOM file, "" where it states none.

    Files that state neither, and those of other kinds, are not in the answer. Two studies of a patient whose id is
    empty are told apart: nothing in them says that they are of one.

    Equal ids of different issuers are different patients, unless some file states that id without an issuer: then it
    may be either, and all files with the id are taken for one patient's, since two in one group leak nothing.

    A pseudonym is "patient-" and 16 hex digits of an HMAC-SHA256 of the patient's id, or "study-" and those of the
    study's UID. Its salt is the SHA-256 over the contents of all these files: it is stored nowhere, so who has the run
    but not the images cannot try ids out; the same data give the same groups, hence the same split, on any machine;
    other data give other pseudonyms.
    """
    stated: dict[Path, list[bytes]] = {}
    contents = []
    for file in dict.fromkeys(files):
        try:
            if not file.is_file():
                continue  # a pipe would never end
            with file.open("rb") as handle:
                head = handle.read(132)
                data = head + handle.read() if is_dicom(head) else b""
        except OSError:
            continue  # the scan decodes every image, and names what cannot be read; so below
        if not data:
            continue
        require_pydicom(str(file))
        try:
            dataset = parsed(data)
            raw = [dataset.get_item(tag) for tag in _TAGS]  # bytes, since nothing has asked for them yet
            stated[file] = [bytes(item.value or b"").strip(b" \0") if item is not None else b"" for item in raw]
        except reader_errors():
            continue
        contents.append(hashlib.sha256(data).digest())
    salt = hashlib.sha256(b"".join(sorted(contents))).digest()

    def pseudonym(kind: str, secret: bytes) -> str:
        return f"{kind}-{hmac.new(salt, secret, 'sha256').hexdigest()[:16]}" if secret else ""

    unissued = {patient for patient, issuer, _ in stated.values() if not issuer}
    found = {}
    for file, (patient, issuer, study) in stated.items():
        whole = patient and patient + b"\\" + (b"" if patient in unissued else issuer)
        found[file] = pseudonym("patient", whole), pseudonym("study", study)
    return {file: names for file, names in found.items() if any(names)}
