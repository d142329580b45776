"""Which DICOM files show one patient, without naming anyone.

Why: images of one patient on both sides of a split are a leak, and DICOM files say whose they are. Only the patient's
id and its issuer are read; what is written are pseudonyms. Used through `dataset.scan`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from edgemed.dicom import is_dicom, parsed, reader_errors, require_pydicom

_PATIENT = (0x00100020, 0x00100021)  # id, and who issued it


def patient_groups(files: Sequence[Path]) -> dict[Path, str]:
    """The pseudonym of the patient of every DICOM file that names one; the other files are not in the answer.

    Equal ids of different issuers are different patients, unless some file states that id without an issuer: then it
    may be either, and all files with the id are taken for one patient's, since two in one group leak nothing.

    A pseudonym is "patient-" and 16 hex digits of an HMAC-SHA256 of the patient's id. Its salt is the SHA-256 over the
    contents of all these files: it is stored nowhere, so who has the run but not the images cannot try ids out; the
    same data give the same groups, hence the same split, on any machine; other data give other pseudonyms.
    """
    patients: dict[Path, tuple[bytes, bytes]] = {}
    contents = []
    for file in dict.fromkeys(files):
        try:
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
            raw = [dataset.get_item(tag) for tag in _PATIENT]  # bytes, since nothing has asked for them yet
            ids = [bytes(item.value or b"").strip(b" \0") if item is not None else b"" for item in raw]
        except reader_errors():
            continue
        contents.append(hashlib.sha256(data).digest())
        if ids[0]:
            patients[file] = ids[0], ids[1]
    salt = hashlib.sha256(b"".join(sorted(contents))).digest()
    unissued = {patient for patient, issuer in patients.values() if not issuer}
    known = {
        file: patient + b"\\" + (b"" if patient in unissued else issuer) for file, (patient, issuer) in patients.items()
    }
    return {file: f"patient-{hmac.new(salt, patient, 'sha256').hexdigest()[:16]}" for file, patient in known.items()}
