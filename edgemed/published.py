"""The paper's data sets as their publishers describe them: terms, citation, counts, folders, and what to know of each.

Why its own module: these are facts to look up and to correct, not code. `recipes.py` finds the images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PublishedSet:
    """Who published a set, under which terms, and how many images each class (or part) has."""

    title: str
    licence: str
    citation: str
    counts: Mapping[str, int]
    folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # class -> its folders, in any case
    lists: Mapping[str, str] = field(default_factory=dict)  # class -> its split's lists, {} for train, val and test
    note: str = ""  # what to know before a figure on this set is believed


BUSI = PublishedSet(
    title="BUSI, breast ultrasound",
    licence="no licence file by its owners is known; MedMNIST states CC BY 4.0: attribute, ask before commercial use",
    citation="Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28:104863 (2020)",
    counts={"benign": 437, "malignant": 210, "normal": 133},
    folders={name: (name,) for name in ("benign", "malignant", "normal")},
    note="it has no patient ids and many copies, some under another label: training joins what it finds into groups",
)
_KVASIR_CLASSES = (
    "dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum",
    "normal-pylorus", "normal-z-line", "polyps", "ulcerative-colitis",
)  # fmt: skip
KVASIR = PublishedSet(
    title="Kvasir v2, endoscopy",
    licence="research and education only; anything else needs the owners' written consent (Simula)",
    citation="Pogorelov et al., KVASIR: a multi-class image dataset, ACM MMSys 2017, doi 10.1145/3083187.3083212",
    counts=dict.fromkeys(_KVASIR_CLASSES, 1000),
    folders={name: (name,) for name in _KVASIR_CLASSES},
    note="it has no patient ids, and frames of one video: what training does not see as near-duplicates may leak",
)
ISIC_CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
ISIC_TRAINING = dict(zip(ISIC_CLASSES, (1113, 6705, 514, 327, 1099, 115, 142), strict=True))
ISIC2018 = PublishedSet(
    title="ISIC 2018 task 3 (HAM10000), dermoscopy",
    licence="CC BY-NC 4.0: not for commercial use",
    citation="Codella et al., arXiv:1902.03368; Tschandl et al., The HAM10000 dataset, Sci Data 5:180161 (2018)",
    counts={f"train {name}": count for name, count in ISIC_TRAINING.items()} | {"validation": 193, "test": 1512},
)
_EXTENSIVE = "Extensive COVID-19 X-ray and CT chest images"
_EXTENSIVE_TERMS = (
    "CC BY 4.0",
    "El-Shafai and Abd El-Samie, Mendeley Data, doi 10.17632/8h65ywd2jr.3 (2020)",
)
_AUGMENTED = "it holds mirrored and turned copies, and does not say of what: they leak, and flatter any figure"
_PAIR = {"covid": ("COVID",), "non-covid": ("non-COVID",)}
COVID = (
    PublishedSet(
        _EXTENSIVE, *_EXTENSIVE_TERMS, {"covid": 9471, "non-covid": 8128},
        {"covid": ("CT/COVID", "X-ray/COVID"), "non-covid": ("CT/non-COVID", "X-ray/non-COVID")},
        note=f"{_AUGMENTED}; CT and X-ray are mixed, and CT is mostly covid: SRC may be one of its two folders",
    ),
    PublishedSet(f"{_EXTENSIVE}: CT", *_EXTENSIVE_TERMS, {"covid": 5427, "non-covid": 2628}, _PAIR, note=_AUGMENTED),
    PublishedSet(f"{_EXTENSIVE}: X-ray", *_EXTENSIVE_TERMS, {"covid": 4044, "non-covid": 5500}, _PAIR, note=_AUGMENTED),
    PublishedSet(
        "SARS-CoV-2 CT-scan", "CC BY-NC-SA 4.0: not for commercial use",
        "Soares et al., SARS-CoV-2 CT-scan dataset, medRxiv 2020.04.24.20078584",
        {"covid": 1252, "non-covid": 1229}, _PAIR,
        note="it has slices of the same patients without their ids: they leak, and flatter any figure",
    ),
    PublishedSet(
        "COVID-CT", "as the articles that the figures come from: research only",
        "Yang et al., COVID-CT-Dataset, arXiv:2003.13865",
        {"covid": 349, "non-covid": 397}, {"covid": ("CT_COVID",), "non-covid": ("CT_NonCOVID",)},
        {"covid": "Data-split/COVID/{}CT_COVID.txt", "non-covid": "Data-split/NonCOVID/{}CT_NonCOVID.txt"},
        "it has several slices of one patient, cut from printed figures",
    ),
    PublishedSet(
        "COVID-19 Radiography Database", "as its sources: attribute, not for commercial use",
        "Chowdhury et al., IEEE Access 8:132665 (2020); Rahman et al., Comput Biol Med 132:104319 (2021)",
        {"covid": 3616, "normal": 10192, "lung opacity": 6012, "viral pneumonia": 1345},
        {"covid": ("COVID/images",), "normal": ("Normal/images",), "lung opacity": ("Lung_Opacity/images",),
         "viral pneumonia": ("Viral Pneumonia/images",)},
        note="each class comes from other hospitals, and a network may tell those apart in place of diseases",
    ),
)  # fmt: skip
