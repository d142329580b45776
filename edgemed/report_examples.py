"""Pictures of what the masked pretraining did: images, their entropy, what was removed, what the decoder filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from edgemed.config import TrainConfig, derive_seed
from edgemed.errors import one_line
from edgemed.images import image_from_file
from edgemed.loop import log
from edgemed.mae import MaskedAutoencoder, reconstructed
from edgemed.masking import removed_units, unit_entropy
from edgemed.models import create_backbone, normalisation
from edgemed.preprocess import FrontEnd
from edgemed.report_training import MaskExample


@torch.inference_mode()
def mask_examples(config: TrainConfig, files: Sequence[Path], pretrained: Path) -> list[MaskExample]:
    """One example per file: the image at the pretraining size, its entropy, a mask, and the reconstruction.

    There is none, and a warning, where `pretrained` cannot be read: fine-tuning is done with it, and needs it no more.
    """
    front = FrontEnd(config.pretrain_size, *normalisation(config.backbone))
    model = _autoencoder(config, pretrained)
    examples = []
    for number, file in enumerate(files):
        resized = front.resized(torch.from_numpy(image_from_file(file))[None]).round().clamp(0, 255)  # (1, 3, S, S)
        image = resized.permute(0, 2, 3, 1).to(torch.uint8)
        seed, ids = derive_seed(config.seed, "examples"), torch.tensor([number])
        removed = removed_units(
            image, config.mask_ratio, config.sharpness, seed, ids, config.entropy_patch, config.renyi_order
        )
        pixels = front.normalised(resized)
        reconstruction = None
        if model is not None:
            filled = reconstructed(model(pixels, removed), pixels, removed)
            grey_levels = ((filled - front.shift) / front.scale).round().clamp(0, 255).to(torch.uint8)
            reconstruction = grey_levels[0].permute(1, 2, 0).contiguous().numpy()
        examples.append(
            MaskExample(
                image=image[0].numpy(),
                entropy=unit_entropy(image, config.entropy_patch, config.renyi_order)[0].numpy(),
                mask=removed[0].numpy(),
                reconstruction=reconstruction,
            )
        )
    return examples


def _autoencoder(config: TrainConfig, pretrained: Path) -> MaskedAutoencoder | None:
    """The pretrained network in evaluation mode; None where its file is gone or damaged."""
    model = MaskedAutoencoder(create_backbone(config.backbone, classes=0)).eval()
    try:
        state = load_file(pretrained)
        names = {key: key.removeprefix("decoder.") if key.startswith("decoder.") else f"encoder.{key}" for key in state}
        model.load_state_dict({names[key]: state[key] for key in state})
    except (OSError, SafetensorError, RuntimeError) as error:
        told = "%s cannot be read (%s); the report shows masks without reconstructions"
        log.warning(told, pretrained, one_line(error))
        return None
    return model
