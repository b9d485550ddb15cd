"""The code of a model card: it builds a detector with torchvision alone and loads its weights."""

from typing import Any

from outgrow.detection.families import published
from outgrow.detection.families.create import parse_name
from outgrow.detection.families.detector import Detector


def loading_code(detector: Detector) -> str:
    """Markdown with code that builds the detector with torchvision and loads its weights."""
    backbone, shape, arguments = parse_name(detector.name)
    builder = published.builder_of(detector.family, backbone)
    if builder is not None:
        imports, build = "import torchvision", _published(builder, detector)
    else:
        imports, build = _OF_FAMILY[detector.family](shape, detector)
        build = f"{_body(backbone, arguments, detector)}{_frozen(detector, 'body')}\n{build}"
    title = {"fasterrcnn": "Faster R-CNN", "retinanet": "RetinaNet", "fcos": "FCOS", "ssdlite": "SSDLite"}
    return f"""`model.safetensors` is the state dict of torchvision's {title[detector.family]}, built like this:

```python
from collections import OrderedDict
import torch
from safetensors.torch import load_file
from timm.layers import freeze_batch_norm_2d
{imports}
{build}
model.load_state_dict(load_file("model.safetensors"))
model.eval().requires_grad_(False)
found = model([image])[0]  # RGB in [0, 1], 3 x height x width; boxes, labels (from 1), scores
```"""


def _published(builder: str, detector: Detector) -> str:
    transform = detector.net.transform
    sizes = f", min_size={transform.min_size[-1]}, max_size={transform.max_size}"
    place = "model.backbone.features" if detector.family == "ssdlite" else "model.backbone"
    more = f"{_frozen(detector, place)}"
    if detector.family == "ssdlite":
        sizes = ""
        more += f"model.transform.fixed_size = {tuple(transform.fixed_size)}\n"
    return (
        f"model = torchvision.models.detection.{builder}(\n    weights=None, weights_backbone=None, "
        f"num_classes={detector.num_classes}{sizes},\n    image_mean={transform.image_mean}, "
        f"image_std={transform.image_std},\n)\n{more}"
    )


def _frozen(detector: Detector, place: str) -> str:
    """Code that freezes the batch norms of ``place``, if they are."""
    norms = [m for m in detector.net.modules() if type(m).__name__.startswith("FrozenBatchNorm")]
    if not norms:
        return ""
    code = f"{place} = freeze_batch_norm_2d({place})\n"
    if norms[0].eps == 0.0:
        code += f"for m in {place}.modules(): m.eps = 0.0\n"
    return code


def _pyramid(shape: Any, detector: Detector) -> tuple[str, str]:
    """Imports, and the class of the pyramid."""
    levels = list(detector.levels.values())
    convolved = detector.family != "fasterrcnn"
    taken = levels[: shape.levels[1] - shape.levels[0] + 1]
    more = f"LastLevelP6P7({shape.channels}, {shape.channels})" if convolved else "LastLevelMaxPool()"
    widths = [int(block[0].in_channels) for block in detector.net.backbone.fpn.inner_blocks]
    imports = (
        f"from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, {more.partition('(')[0]}"
    )
    return (
        imports,
        f"""class Pyramid(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.out_channels = body, {shape.channels}
        self.fpn = FeaturePyramidNetwork({widths}, {shape.channels}, extra_blocks={more})

    def forward(self, images):
        maps = self.body(images)
        maps = list(maps.values()) if isinstance(maps, dict) else maps
        return OrderedDict(zip({levels}, self.fpn(OrderedDict(zip({taken}, maps))).values()))
""",
    )


def _input(detector: Detector) -> str:
    """The arguments for size and normalisation."""
    transform = detector.net.transform
    return (
        f"min_size={transform.min_size[-1]}, max_size={transform.max_size}, image_mean={transform.image_mean},\n"
        f"    image_std={transform.image_std},"
    )


def _fasterrcnn(shape: Any, detector: Detector) -> tuple[str, str]:
    imports, pyramid = _pyramid(shape, detector)
    anchors = detector.net.rpn.anchor_generator
    kept = max(shape.proposals // 2, 1)
    imports = f"""from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
{imports}"""
    return (
        imports,
        f"""{pyramid}
model = FasterRCNN(
    Pyramid(), {_input(detector)}
    rpn_anchor_generator=AnchorGenerator({anchors.sizes}, {anchors.aspect_ratios}),
    box_roi_pool=MultiScaleRoIAlign({list(detector.levels.values())[:-1]}, 7, sampling_ratio=2),
    box_head=TwoMLPHead({shape.channels * 49}, {shape.head}),
    box_predictor=FastRCNNPredictor({shape.head}, {detector.num_classes}),
    rpn_pre_nms_top_n_test={kept}, rpn_post_nms_top_n_test={kept},
)""",
    )


def _one_stage(name: str, shape: Any, detector: Detector) -> tuple[str, str]:
    imports, pyramid = _pyramid(shape, detector)
    anchors = detector.net.anchor_generator
    imports = f"""from torchvision.models.detection import {name}
from torchvision.models.detection.anchor_utils import AnchorGenerator
{imports}"""
    return (
        imports,
        f"""{pyramid}
model = {name}(
    Pyramid(), {detector.num_classes}, {_input(detector)}
    anchor_generator=AnchorGenerator({anchors.sizes}, {anchors.aspect_ratios}),
)""",
    )


def _retinanet(shape: Any, detector: Detector) -> tuple[str, str]:
    return _one_stage("RetinaNet", shape, detector)


def _fcos(shape: Any, detector: Detector) -> tuple[str, str]:
    return _one_stage("FCOS", shape, detector)


def _ssdlite(shape: Any, detector: Detector) -> tuple[str, str]:
    net, transform = detector.net, detector.net.transform
    widths = net.backbone.widths
    pairs = list(zip(widths[-5:], widths[-4:], strict=False))
    ratios = net.anchor_generator.aspect_ratios
    imports = """from functools import partial
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block"""
    return (
        imports,
        f"""norm = partial(torch.nn.BatchNorm2d, eps=0.001, momentum=0.03)

class Maps(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body
        self.extra = torch.nn.ModuleList(_extra_block(a, b, norm) for a, b in {pairs})

    def forward(self, images):
        maps = self.body(images)
        maps = list(maps.values()) if isinstance(maps, dict) else list(maps)
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict(zip({list(detector.levels.values())}, maps))

anchors = DefaultBoxGenerator({ratios}, min_ratio={net.anchor_generator.scales[0]}, max_ratio=0.95)
model = SSD(
    Maps(), anchors, {tuple(transform.fixed_size)}, {detector.num_classes},
    head=SSDLiteHead({widths}, anchors.num_anchors_per_location(), {detector.num_classes}, norm),
    image_mean={transform.image_mean}, image_std={transform.image_std},
    score_thresh={net.score_thresh}, nms_thresh={net.nms_thresh},
    detections_per_img={net.detections_per_img}, topk_candidates={net.topk_candidates},
)""",
    )


_OF_FAMILY = {"fasterrcnn": _fasterrcnn, "retinanet": _retinanet, "fcos": _fcos, "ssdlite": _ssdlite}


def _body(backbone: str, arguments: dict[str, Any], detector: Detector) -> str:
    library, _, rest = backbone.partition("/")
    if library == "timm":
        return _timm_body(rest, arguments, detector)
    return _torchvision_body(rest, detector.net.backbone.body)


def _timm_body(rest: str, arguments: dict[str, Any], detector: Detector) -> str:
    from outgrow.models.timm_extra import TIMM_EXTRA

    body: Any = detector.net.backbone.body
    indices = tuple(body.feature_info.out_indices)
    extra = "".join(f", {key}={value!r}" for key, value in arguments.items())
    features = f"features_only=True, out_indices={indices}{extra}"
    if rest == "mobilenetv2_100_tf2_224":
        return f'import timm\n\nbody = timm.create_model("mobilenetv2_100", pad_type="same", {features})\n'
    if rest in TIMM_EXTRA:
        build: Any = TIMM_EXTRA[rest][0]
        return (
            "from timm.models.efficientnet import _gen_mobilenet_v1\n\n"
            f'body = _gen_mobilenet_v1("mobilenetv1_100", {build.args[0]}, pad_type="same", {features})\n'
        )
    return f'import timm\n\nbody = timm.create_model("{rest}", {features})\n'


def _torchvision_body(rest: str, body: Any) -> str:
    layers = dict(body.return_layers)
    return (
        "import torchvision\nfrom torchvision.models._utils import IntermediateLayerGetter\n\n"
        f'net = torchvision.models.get_model("{rest}")\n'
        f'body = IntermediateLayerGetter(getattr(net, "features", net), {layers})\n'
    )
