"""Half precision that can be trusted: which parts stay float32, and a run on the CPU that shows what rounding does.

CPU runtimes execute an fp16 graph in float32, so a graph that overflows on a GPU comes out finite there. What shows it
is an executor that rounds after every operator: `rounded_outputs` below, which `edgemed build-engine` runs on a few
validation images and the golden ones before it writes anything; on more of them it watches the sizes alone:

    edgemed build-engine RUN --out BUNDLE
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgemed.ensemble import Ensemble
from edgemed.errors import GateError, InputError

LARGEST_SAFE = 16_000.0  # a quarter of float16's largest number, 65,504: images unlike the ones seen may go further
# A sum over many values is where float16 overflows first (a LayerNorm squares them, too), and these cost nothing.
FLOAT32_LAYERS = (nn.LayerNorm, SelectAdaptivePool2d)
# The first layers by timm's names (EfficientNet's, ConvNeXt's, ResNet's): every later one multiplies their error. With
# EfficientNet's in float16, whose folded stem has weights up to 370 that cancel, trained logits were 1 % off.
FLOAT32_NAMES = ("conv_stem", "blocks.0", "blocks.1", "stem", "conv1")
STAGES = re.compile(r"stem|conv_stem|conv1|(blocks|stages)\.\d+|layer\d+")  # the stem and the stages, by timm's names


class Float32(nn.Module):
    """A layer that computes in float32 inside a float16 network: takes either type, gives float16.

    narrow: whether the result goes back to float16; not before another layer that computes in float32. wide: the whole
    network computes in float32, only its weights are rounded, so nothing goes back.
    """

    def __init__(self, layer: nn.Module, narrow: bool, wide: bool) -> None:
        super().__init__()
        self.layer = layer
        self.narrow = narrow
        self.wide = wide

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x.float())
        return result.half() if self.narrow and not self.wide else result


def half_ensemble(ensemble: Ensemble, keep: Sequence[str] = (), wide: bool = False) -> Ensemble:
    """A copy with float16 members. Float32 stay: the front end, `FLOAT32_LAYERS` with their weights, softmax, mean.

    keep: further layers that stay float32 in every member, by timm's names, like "stages.3.blocks.1". wide: compute in
    float32 with the rounded weights, as a CPU executes the graph: fast, and most of what rounding does.

    Batch norm is folded into the convolutions first, in float32, so that its products are rounded once.

    Raises:
        GateError: a weight does not fit into float16.
        InputError: `keep` names a layer that is none.
    """
    folded = [_without_batch_norm(member, ensemble.front.size) for member in ensemble.members]
    members = [_half(network, keep, wide) for network in folded]
    half = Ensemble(copy.deepcopy(ensemble.front), members, ensemble.temperatures.tolist())
    return half.eval()


def _half(network: nn.Module, keep: Sequence[str], wide: bool) -> nn.Module:
    """`network` with its weights rounded to float16 in place, but for the layers that stay float32.

    Between two of its stages that stay float32, nothing is rounded.
    """
    if unknown := set(keep) - {name for name, _ in network.named_modules()}:
        raise InputError(f"no layer of the network is named {', '.join(sorted(unknown))}; it cannot stay float32")
    kept: set[int] = set()
    float32 = {*FLOAT32_NAMES, *keep}
    before_float32 = {stage for stage, following in pairwise(stages_of(network)) if _is_in(following, float32)}
    for name, layer in list(network.named_modules()):
        if name not in float32 and _is_in(name, float32):
            continue  # inside of a layer that stays float32 as a whole
        if isinstance(layer, FLOAT32_LAYERS) or name in float32:
            kept |= {id(value) for value in chain(layer.parameters(), layer.buffers())}
            network.set_submodule(name, Float32(layer, name not in before_float32, wide))
    for name, value in chain(network.named_parameters(), network.named_buffers()):
        if value.is_floating_point() and id(value) not in kept:
            value.data = value.data.half()
            if not bool(value.isfinite().all()):
                raise GateError(f"the weight {name} does not fit into float16; build with the fp32 graph only")
            value.data = value.data.float() if wide else value.data
    return network


def stages_of(network: nn.Module) -> list[str]:
    """The names of the stem and the stages, in the order of execution."""
    return [name for name, _ in network.named_modules() if STAGES.fullmatch(name)]


def _is_in(name: str, layers: Collection[str]) -> bool:
    """Whether the layer `name` is one of `layers`, or inside of one."""
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)


def _without_batch_norm(network: nn.Module, size: int) -> nn.Module:
    """A copy in which every batch norm is folded into the convolution whose output it takes.

    Which convolution that is shows in a forward pass: timm's families name and nest their layers differently.
    """
    folded = copy.deepcopy(network).eval()
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by id of the output, which is kept alive so that ids stay unique
    source: dict[str, nn.Conv2d] = {}

    def note_output(layer: nn.Conv2d, _: Any, output: Tensor) -> None:
        made[id(output)] = (layer, output)

    with ExitStack() as hooks:
        for name, layer in folded.named_modules():
            if isinstance(layer, nn.Conv2d):
                hooks.callback(layer.register_forward_hook(note_output).remove)
            elif isinstance(layer, nn.BatchNorm2d):

                def note_input(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    source[name] = made[id(inputs[0])][0]

                hooks.callback(layer.register_forward_pre_hook(note_input).remove)
        pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            before = folded(pixels)
    for name, conv in source.items():
        norm = folded.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        conv.weight, bias = nn.utils.fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.register_parameter("bias", bias)
        # timm's batch norm holds the activation that follows it, and a drop layer that does nothing in evaluation.
        folded.set_submodule(name, getattr(norm, "act", nn.Identity()))
    with torch.no_grad():
        change = float((folded(pixels) - before).abs().max() / before.abs().max().clamp(min=1e-6))
    if not change < 1e-3:
        raise GateError(f"folding batch norm changed the network's output by {change:.1e} of its largest value")
    return folded


@dataclass(frozen=True)
class Rounded:
    """What an ensemble gives when every float16 operator's result, or the weights alone, are rounded to float16."""

    probabilities: NDArray[np.float32]  # (N, K)
    members: NDArray[np.float32]  # (N, M, K)
    largest: Mapping[str, float]  # largest magnitude over all images of each output that float16 holds, or would

    @property
    def unsafe(self) -> dict[str, float]:
        """The operators above `LARGEST_SAFE`; infinity and NaN count."""
        return {name: value for name, value in self.largest.items() if not value <= LARGEST_SAFE}


def rounded_outputs(half: Ensemble, images: Iterable[NDArray[np.uint8]]) -> Rounded:
    """Run `half` (from `half_ensemble`) image by image, rounding after every operator, and watch the sizes.

    images: uint8 (H, W, 3) RGB each, at least one. Products accumulate in float32 and round once, as tensor cores do.
    Where `half` is wide, only its weights are rounded, which is fast; the sizes are those that float16 would have to
    hold. Operators are named by their layer, like "members.0.stages.3.blocks.1: aten.add.Tensor".
    """
    outputs = []
    with ExitStack() as hooks, torch.no_grad():
        watch = hooks.enter_context(_Watch())
        for name, layer in half.named_modules():
            hooks.callback(layer.register_forward_pre_hook(partial(watch.enter, name)).remove)
            hooks.callback(layer.register_forward_hook(partial(watch.leave, name)).remove)
        for image in images:
            outputs.append(half(torch.from_numpy(image)[None]))
    probabilities, members = (torch.cat(part).numpy() for part in zip(*outputs, strict=True))
    return Rounded(probabilities, members, watch.largest)


@dataclass(frozen=True)
class SafeHalf:
    """What `safe_half` found: what the float16 members give, rounded, and the layers that had to stay float32."""

    rounded: Rounded
    kept: tuple[str, ...]


def safe_half(
    ensemble: Ensemble,
    images: Callable[[], Iterable[NDArray[np.uint8]]],
    close: Callable[[Rounded, Rounded], bool] = lambda rounded, weights: True,
    every: Callable[[], Iterable[NDArray[np.uint8]]] | None = None,
) -> SafeHalf:
    """Find the layers that must stay float32 so that no float16 value is above `LARGEST_SAFE`, on these images.

    images: called for each try, gives uint8 (H, W, 3) RGB, on which every operator is rounded. every: likewise, those
    on which the weights alone are, many more; None = `images`. A layer with a value that is too large on one of either
    stays float32; where its output still is (it leaves the layer as float16), the layer around it does.

    close: whether the outputs of both are as near to float32's as they have to be. While they are not, one stage more
    from the network's start stays float32, since the later ones multiply its error; all but the last one at most.

    Raises:
        GateError: a whole network would have to stay float32, or a weight does not fit into float16.
    """
    kept: set[str] = set()
    while True:
        rounded = rounded_outputs(half_ensemble(ensemble, sorted(kept)), images())
        unsafe = rounded.unsafe
        if not unsafe:
            weights = rounded_outputs(half_ensemble(ensemble, sorted(kept), wide=True), (every or images)())
            unsafe = weights.unsafe
        if not unsafe:
            left = [name for name in stages_of(ensemble.members[0])[:-1] if not _is_in(name, {*FLOAT32_NAMES, *kept})]
            if close(rounded, weights) or not left:
                return SafeHalf(rounded, tuple(sorted(kept)))
            kept = {left[0], *(name for name in kept if not _is_in(name, {left[0]}))}
            continue
        before = frozenset(kept)
        beyond = [operator for operator, size in unsafe.items() if not np.isfinite(size)]
        for operator, size in unsafe.items():
            if operator in beyond[1:]:
                continue  # in the order of execution, the others may only have inherited the first one's infinity
            layer = ".".join(operator.partition(": ")[0].split(".")[2:])  # without "members.0"
            while layer in before or layer in FLOAT32_NAMES:  # float32 inside already, and too large outside
                layer = layer.rpartition(".")[0]
            if not layer:
                raise GateError(
                    f"fp16 would overflow: {operator} reaches {size:g}, {LARGEST_SAFE:g} is safe, and no layer around "
                    "it can stay float32 alone; use the fp32 graph"
                )
            kept.add(layer)
        # What lies inside of a layer that stays float32 as a whole needs no entry of its own.
        kept = {one for one in kept if not any(one.startswith(f"{outer}.") for outer in kept)}


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator. Torch's float16 operators round; its products are slow: float32 ones stand in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest: dict[str, float] = {}
        self._inside: list[tuple[str, bool]] = []  # the layers under way, and whether float16 would hold their values

    def enter(self, name: str, layer: nn.Module, _: Any) -> None:
        """Before a layer of the ensemble, by its name."""
        in_member = name.count(".") == 1 and name.startswith("members.")
        outer = bool(self._inside) and self._inside[-1][1]
        self._inside.append((name, (outer or in_member) and not isinstance(layer, Float32)))

    def leave(self, name: str, layer: nn.Module, _: Any, output: Tensor) -> None:
        """After it."""
        if isinstance(layer, Float32) and layer.narrow and layer.wide:
            self._note(f"{name}: aten._to_copy.default", output)  # inside of it, where this itself is not watched
        self._inside.pop()

    def _note(self, name: str, value: Tensor) -> None:
        size, known = float(value.abs().amax()), self.largest.get(name, 0.0)  # NaN stays NaN
        if not np.isfinite(size) and np.isfinite(known):
            self.largest.pop(name, None)  # to the end: the order of overflows tells which was the first
        if not size <= known:
            self.largest[name] = size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS and args[0].dtype == torch.float16:
            wide = [arg.float() if isinstance(arg, Tensor) else arg for arg in args]
            result = func(*wide, **(kwargs or {})).half()
        else:
            result = func(*args, **(kwargs or {}))
        layer, held = self._inside[-1] if self._inside else ("", False)
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
                continue
            if held or value.dtype == torch.float16:
                self._note(f"{layer}: {func}", value)
        return result


_PRODUCTS = {
    torch.ops.aten.convolution.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
}
