"""Build a feature pyramid on a backbone of torchvision or timm.

    pyramid, spec = build_pyramid("fcos", "timm/tf_efficientnet_lite0", levels=(3, 5), channels=64, ...)
    pyramid(images)      # {"p3": ..., "p4": ..., "p5": ..., "p6": ...}, strides 8, 16, 32, 64

A level is named by its stride: ``p3`` is 2**3 pixels. The last level is max-pooled from the one before; for dense
detectors two levels are convolutions of the one before.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.models.network import InputSpec

IMAGENET = InputSpec(None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Pyramid(nn.Module):
    """``body`` returns feature maps from fine to coarse; ``fpn`` maps each to ``out_channels`` channels."""

    def __init__(
        self, body: nn.Module, widths: list[int], strides: list[int], channels: int, *, convolved: bool
    ) -> None:
        from torchvision.ops.feature_pyramid_network import (
            FeaturePyramidNetwork,
            LastLevelMaxPool,
            LastLevelP6P7,
        )

        super().__init__()
        self.body = body
        more = LastLevelP6P7(channels, channels) if convolved else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=more)
        self.strides = (*strides, *(strides[-1] * 2 ** (k + 1) for k in range(2 if convolved else 1)))
        self.levels = tuple(f"p{stride.bit_length() - 1}" for stride in self.strides)
        self.out_channels = channels

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> "OrderedDict[str, Tensor]":
        maps = self.body(images)
        maps = list(maps.values()) if isinstance(maps, Mapping) else maps
        named = OrderedDict(zip(self.levels, maps, strict=False))
        return OrderedDict(zip(self.levels, self.fpn(named).values(), strict=True))


def build_pyramid(
    family: str,
    name: str,
    *,
    levels: tuple[int, int],
    channels: int,
    pretrained: bool,
    arguments: Mapping[str, Any],
    convolved: bool = False,
) -> tuple[Pyramid, InputSpec]:
    """The pyramid on the classifier ``torchvision/NAME`` or ``timm/NAME``, and its input normalisation.

    ``levels`` are the finest and the coarsest map taken from the backbone: the base-2 logarithms of their strides.
    ``convolved`` adds two levels by convolution, in place of one by pooling. ``arguments`` go to timm. ``pretrained``
    downloads the library's ImageNet weights. ``ValueError`` for an unknown name, or for levels that the backbone does
    not have. ``family`` is for messages.
    """
    body = build_body(family, name, levels=levels, pretrained=pretrained, arguments=arguments)
    return Pyramid(body.net, body.widths, body.strides, channels, convolved=convolved), body.spec


class Body(NamedTuple):
    """A backbone that returns maps, their widths and strides, and its input normalisation."""

    net: nn.Module
    widths: list[int]
    strides: list[int]
    spec: InputSpec


def build_body(
    family: str, name: str, *, levels: tuple[int, int], pretrained: bool, arguments: Mapping[str, Any]
) -> Body:
    """The backbone alone, with the options of :func:`build_pyramid`."""
    library, _, rest = name.partition("/")
    builders = {"torchvision": _torchvision, "timm": _timm}
    if library not in builders or not rest:
        raise ValueError(
            f"{family}:{name}: needs a backbone torchvision/NAME or timm/NAME, got {name!r}; "
            f"for example {family}:torchvision/resnet18 or {family}:timm/tf_efficientnet_lite0."
        )
    body, available, spec = builders[library](family, rest, pretrained, dict(arguments))
    if not available:
        raise ValueError(
            f"{family}:{name}: needs a backbone with maps of several strides and channels first, got one without; choose a "
            "convolutional one such as torchvision/convnext_tiny."
        )
    strides = [2**level for level in range(levels[0], levels[1] + 1)]
    if not strides or any(stride not in available for stride in strides):
        levels_text = ", ".join(str(stride.bit_length() - 1) for stride in available)
        raise ValueError(
            f"{family}:{name}: needs levels that the backbone has ({levels_text}), got {levels[0]}-{levels[1]}; "
            "set ?levels=FIRST-LAST."
        )
    widths = [available[stride][1] for stride in strides]
    net = body([available[stride][0] for stride in strides])
    _check_maps(f"{family}:{name}", net, widths)
    return Body(net, widths, strides, spec)


@torch.no_grad()
def _check_maps(name: str, net: nn.Module, widths: list[int]) -> None:
    """``ValueError`` for a backbone that takes one size of images only, or whose maps have channels last."""
    training = net.training
    net.eval()
    try:
        found = net(torch.zeros(1, 3, 128, 160))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"{name}: needs a backbone that takes images of any size, got an error for 128 x 160 pixels: "
            f"{str(error).splitlines()[0].rstrip('.') if str(error) else type(error).__name__}; choose a convolutional one "
            "such as timm/convnext_atto, or timm/pvt_v2_b0."
        ) from None
    finally:
        net.train(training)
    for value, width in zip(found.values() if isinstance(found, Mapping) else found, widths, strict=True):
        if value.shape[1] != width:
            raise ValueError(
                f"{name}: needs a backbone whose maps have channels first, got maps of shape {tuple(value.shape)} for {width} "
                "channels, as of Swin; choose a convolutional one such as timm/convnext_atto, or timm/pvt_v2_b0."
            )


def _torchvision(family: str, rest: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """For any torchvision classifier whose children, run in order, reduce the resolution step by step."""
    from torchvision import models
    from torchvision.models._utils import IntermediateLayerGetter

    if arguments:
        raise ValueError(
            f"{family}:torchvision/{rest}: needs no arguments for timm, got {', '.join(arguments)}; "
            "remove them after the question mark."
        )
    if rest not in models.list_models(module=models):
        raise ValueError(
            f"{family}:torchvision/{rest}: needs a classifier of torchvision, got {rest!r}; "
            "use for example resnet18, resnet34, resnet50, resnet101, mobilenet_v2 or mobilenet_v3_large."
        )
    net = models.get_model(rest, weights="DEFAULT" if pretrained else None)
    net = getattr(net, "features", net)  # the stages of MobileNets and EfficientNets
    found = _strides(net)

    def body(names: list[str]) -> nn.Module:
        return IntermediateLayerGetter(net, {name: name for name in names})

    return body, found, IMAGENET


@torch.no_grad()
def _strides(net: nn.Module, side: int = 128) -> dict[int, tuple[str, int]]:
    """The last child of ``net`` at each stride and its channels: ``{stride: (name, channels)}``."""
    found: dict[int, tuple[str, int]] = {}
    training = net.training
    net.eval()
    value = torch.zeros(1, 3, side, side)
    for name, child in net.named_children():
        try:
            value = child(value)
        except (RuntimeError, AssertionError):  # the classifier after the last map, or a net without stages
            break
        if value.dim() != 4 or value.shape[2] != value.shape[3] or value.shape[2] < 2:
            break  # a vector, or channels last: not a map for convolutions
        found[side // value.shape[2]] = (name, value.shape[1])
    net.train(training)
    return found


def _timm(family: str, rest: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """For any timm model with ``features_only``."""
    import timm

    from outgrow.models.timm_extra import TIMM_EXTRA

    if rest not in TIMM_EXTRA and not timm.is_model(rest.partition(".")[0]):
        raise ValueError(
            f"{family}:timm/{rest}: needs a model of timm, got {rest!r}; `outgrow list models` prints the names."
        )

    def create(**more: Any) -> nn.Module:
        try:
            if rest in TIMM_EXTRA:
                if pretrained or arguments:
                    raise ValueError(
                        f"{family}:timm/{rest}: needs neither pretrained nor arguments, as Outgrow and not timm builds this "
                        f"model, got {'pretrained' if pretrained else ', '.join(arguments)}; pass its weights as a file."
                    )
                return TIMM_EXTRA[rest][0](1000, **more)
            return timm.create_model(rest, pretrained=pretrained, **arguments, **more)
        except (TypeError, RuntimeError, AssertionError) as error:
            raise ValueError(
                f"{family}:timm/{rest}: needs a model that returns maps of several strides (features_only), got an "
                f"error from timm: {str(error).splitlines()[0] if str(error) else type(error).__name__}; "
                "choose another backbone, or correct the arguments after the question mark."
            ) from error

    probe: Any = create(features_only=True)
    if rest in TIMM_EXTRA:
        spec = TIMM_EXTRA[rest][1]
    else:
        data = timm.data.resolve_model_data_config(probe)
        spec = InputSpec(None, tuple(map(float, data["mean"])), tuple(map(float, data["std"])))  # type: ignore[arg-type]
    reductions, widths = probe.feature_info.reduction(), probe.feature_info.channels()
    # of several maps with the same stride, the deepest
    found = {
        int(stride): (i, int(width)) for i, (stride, width) in enumerate(zip(reductions, widths, strict=True))
    }

    def body(indices: list[int]) -> nn.Module:
        return create(features_only=True, out_indices=tuple(indices))

    return body, found, spec
