"""Nets that timm can build but has no name for: MobileNets with the padding of TensorFlow, as in TFLite files of Google."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from outgrow.models.network import InputSpec

HALF = (0.5, 0.5, 0.5)


def _mobilenet_v1(width: float, num_classes: int, **more: Any) -> nn.Module:
    """timm's MobileNetV1 at another width."""
    import timm.models.efficientnet as efficientnet

    generate = getattr(efficientnet, "_gen_mobilenet_v1", None)
    if generate is None:
        import timm

        raise ValueError(
            "timm/mobilenetv1 at another width: needs timm.models.efficientnet._gen_mobilenet_v1, which is private "
            f"to timm, got timm {timm.__version__} without it; install timm 1.0.x, or use timm/mobilenetv1_100."
        )
    return generate("mobilenetv1_100", width, pad_type="same", num_classes=num_classes, **more)


def _mobilenet_v2_same(num_classes: int, **more: Any) -> nn.Module:
    import timm

    return timm.create_model("mobilenetv2_100", pad_type="same", num_classes=num_classes, **more)


def _spec(size: int) -> InputSpec:
    return InputSpec(size, HALF, HALF, crop_pct=0.875)


TIMM_EXTRA: dict[str, tuple[Callable[..., nn.Module], InputSpec]] = {
    "mobilenetv1_025_128": (partial(_mobilenet_v1, 0.25), _spec(128)),
    "mobilenetv1_050_160": (partial(_mobilenet_v1, 0.5), _spec(160)),
    "mobilenetv1_075_192": (partial(_mobilenet_v1, 0.75), _spec(192)),
    "mobilenetv2_100_tf2_224": (_mobilenet_v2_same, _spec(224)),
}
"""name -> (builder, input). A builder takes the number of classes and timm's keyword arguments
(``features_only``). Sizes and normalisation are those of the TFLite originals."""
