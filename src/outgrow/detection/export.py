"""The detector of a run in files that its users load without this library.

    safetensors   the state dict of torchvision's Faster R-CNN; the card has the code that builds it
    onnx          one picture of any size to boxes, labels and scores, with onnxruntime alone

``.pt2`` is not possible: torch.export cannot follow a detector, whose number of boxes depends on the picture.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from outgrow.data.files import read_picture
from outgrow.data.notes import DataWarning
from outgrow.data.pixels import decode, to_tensor
from outgrow.data.transforms import to_float
from outgrow.detection.boxes import Detections
from outgrow.detection.create import PREFIX, create_detector, parse_name
from outgrow.detection.detector import Detector
from outgrow.detection.pyramid import build_pyramid
from outgrow.detection.run_data import open_run_scenes
from outgrow.models.portable import OnnxModel, write_traced_onnx
from outgrow.models.weights import write_weights
from outgrow.training.deployment import Exported, ExportedFile, FinishedRun, Request, public_name
from outgrow.training.progress import Reporter

WEIGHTS, ONNX = "model.safetensors", "model.onnx"
COMPARED = 8
"""Pictures that a file is compared on."""
PIXELS, SCORE, LOST = 0.1, 1e-3, 0.05
"""What is still rounding: of a box's edge, of a score, and the share of boxes that one side alone has, as of proposals
of equal score others may be kept. Measured: 6e-5, 7e-6, and none of trained detectors."""

Finder = Callable[[Tensor], Detections]


@dataclass(frozen=True)
class Pictures:
    """What files are compared on, in [0, 1], and in words where from."""

    pictures: list[Float[Tensor, "3 _ _"]]
    words: str


def export_student(run: FinishedRun, request: Request, report: Reporter) -> Exported:
    """Write the formats that are asked for. ``ValueError`` where one finds other boxes than the student by more than
    rounding, or cannot be written."""
    notes = []
    if "torch" in request.formats:
        reason = "needs a net whose shapes do not depend on values, got a detector, which torch.export cannot follow"
        if not request.every:
            raise ValueError(f"--format torch: {reason}; export it as onnx or safetensors.")
        notes.append("model.pt2: left out, as torch.export cannot follow a detector")
    if request.int8:
        raise ValueError(
            "--quantize int8: needs a classifier, got a detector, whose boxes lose more than classes do and of which it was "
            "not measured; leave it out."
        )
    detector = load_student(run)
    shown = _pictures(run, request)
    files, loading = [], []
    if "safetensors" in request.formats:
        path = request.folder / WEIGHTS
        write_weights(detector.net.state_dict(), path, _header(detector))
        _write_config(request.folder, detector)
        files.append(_checked(path, _reloaded(path, detector), detector, shown))
        loading.append(loading_code(detector))
    if "onnx" in request.formats:
        path = request.folder / ONNX
        write_detector_onnx(detector, path, shown.pictures[0])
        files.append(_checked(path, onnx_finder(OnnxModel(path)), detector, shown))
        loading.append(_ONNX_LOADING)
    for one in files:
        report.note(f"{one.name} ({one.bytes / 1e6:.2f} MB): {one.check}")
    return Exported(
        files=tuple(files),
        library="torchvision",
        loading="\n\n".join(loading),
        pipeline="object-detection",
        preparation="RGB, turned as EXIF says, in the size that they have, divided by 255; the detector resizes and normalises",
        notes=tuple(notes),
    )


def load_student(run: FinishedRun) -> Detector:
    """The student of a run, in evaluation mode."""
    detector = create_detector(PREFIX, run.record.data.classes or None, weights=run.student)
    return detector.eval().requires_grad_(False)


def write_detector_onnx(detector: Detector, path: Path, example: Float[Tensor, "3 _ _"]) -> None:
    """One picture of any size (3 x height x width, RGB in [0, 1]) to ``boxes``, ``labels`` and ``scores``."""
    write_traced_onnx(
        _Single(detector.net).eval(),
        example,
        path,
        facts_of(detector),
        names=("image", ("boxes", "labels", "scores")),
        dynamic={
            "image": {1: "height", 2: "width"},
            **{name: {0: "found"} for name in ("boxes", "labels", "scores")},
        },
    )


def facts_of(detector: Detector) -> dict[str, Any]:
    """What a file says of itself. A box of label i + 1 is of class ``classes[i]``."""
    return {
        "task": "detection",
        "model": public_name(detector.name),
        "classes": list(detector.classes),
        "input": {
            "image": "float32, 3 x height x width, RGB in [0, 1], any size; resized and normalised inside"
        },
        "output": {
            "boxes": "left, top, right, bottom in pixels of the picture",
            "labels": "from 1; classes[label - 1]",
        },
    }


def onnx_finder(model: OnnxModel) -> Finder:
    """What an exported file finds in a picture."""

    def find(picture: Tensor) -> Detections:
        boxes, labels, scores = model(picture)
        return Detections(boxes.float(), labels.long(), scores.float())

    return find


class _Single(nn.Module):
    """torchvision's detector for one picture, with a tensor for each output.

    torchvision's own graph resizes by a factor in float32, and then has a pixel less than torchvision itself for one
    size in a few: here the factor is a double, as it is there.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net, transform = self.net, self.net.transform
        small = _resize(transform.normalize(image), transform.min_size[-1], transform.max_size)
        sizes = [small.shape[-2:]]
        batch = ImageList(transform.batch_images([small]), sizes)
        maps = net.backbone(batch.tensors)
        boxes, _ = net.rpn(batch, maps)
        found, _ = net.roi_heads(maps, boxes, sizes)
        [found] = transform.postprocess(found, sizes, [image.shape[-2:]])
        return found["boxes"], found["labels"], found["scores"]


def _resize(image: Tensor, short: int, long: int) -> Tensor:
    """The short side to ``short`` pixels, unless the long one would have more than ``long``."""
    shape = torch._shape_as_tensor(image)[1:].to(torch.float64)
    # tensors on both sides: a number over a tensor becomes a product with its reciprocal, which rounds twice
    limits = torch.tensor([short, long], dtype=torch.float64)
    scale = (limits / torch.stack([shape.min(), shape.max()])).min()
    height, width = (shape * scale).to(torch.int64).unbind()
    return F.interpolate(image[None], size=[height, width], mode="bilinear", align_corners=False)[0]  # type: ignore[list-item]


def _pictures(run: FinishedRun, request: Request) -> Pictures:
    """Test pictures of the run, else those that were given, else noise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            test = open_run_scenes(run.record.config).test
        count = min(COMPARED, len(test))
        chosen = torch.linspace(0, len(test) - 1, count).round().long().tolist()
        return Pictures(
            [to_float(test.image(at)[None])[0] for at in chosen], f"{count} test pictures of the run"
        )
    except (ValueError, OSError):
        pass
    if request.images:
        given = [
            decode(read_picture(str(path)), where=lambda path=path: str(path))  # type: ignore[misc]
            for path in request.images[:COMPARED]
        ]
        return Pictures([to_float(to_tensor(one)[None])[0] for one in given], "the pictures given")
    noise = torch.Generator().manual_seed(0)
    sizes = [(240, 320), (320, 240), (200, 200), (300, 400)]
    return Pictures(
        [torch.rand(3, *size, generator=noise) for size in sizes],
        "4 random images: the run's own cannot be opened; --images compares on yours",
    )


@torch.no_grad()
def _checked(path: Path, theirs: Finder, detector: Detector, shown: Pictures) -> ExportedFile:
    """The file, compared with the student; ``ValueError`` where they differ by more than rounding."""
    edge, score, alone, total = 0.0, 0.0, 0, 0
    for picture in shown.pictures:
        ours, found = detector.detect([picture])[0], theirs(picture)
        ours_at, found_at = matched(ours, found)
        total += len(ours.label)
        alone += _left(ours, ours_at, detector) + _left(found, found_at, detector)
        if len(ours_at):
            edge = max(edge, float((ours.boxes[ours_at] - found.boxes[found_at]).abs().max()))
            score = max(score, float((ours.score[ours_at] - found.score[found_at]).abs().max()))
    check = (
        f"{total} boxes, {alone} found by one of the two alone, others within {edge:.1e} pixels and {score:.1e} of the score "
        f"({shown.words})"
    )
    if not (edge <= PIXELS and score <= SCORE and alone <= LOST * total):
        raise ValueError(
            f"export: needs {path.name} to find what the student finds, got {check}, and nothing was written; leave this "
            "format out (--format), and please report the detector."
        )
    return ExportedFile(path.name, path.stat().st_size, check)


def _left(found: Detections, paired: list[int], detector: Detector) -> int:
    """Boxes that the other side has not, but for those that rounding can push over an edge: the least score that a
    detector reports, or, where it reports as many boxes as it may, that of the last."""
    heads: Any = detector.net.roi_heads
    edge = heads.score_thresh
    if len(found.score) >= heads.detections_per_img:
        edge = max(edge, float(found.score.min()))
    kept = torch.ones(len(found.score), dtype=torch.bool)
    kept[paired] = False
    return int((found.score[kept] > edge + SCORE).sum())


def matched(ours: Detections, theirs: Detections) -> tuple[list[int], list[int]]:
    """Positions of the boxes that both have: the same label, best overlap first, each once."""
    if not len(ours.label) or not len(theirs.label):
        return [], []
    overlap = box_iou(ours.boxes, theirs.boxes) * (ours.label[:, None] == theirs.label[None])
    # of boxes that lie in one place, the pair of most equal scores
    overlap = overlap - 1e-3 * (ours.score[:, None] - theirs.score[None]).abs()
    pairs: tuple[list[int], list[int]] = ([], [])
    for at in overlap.flatten().argsort(descending=True, stable=True).tolist():
        here, there = divmod(at, len(theirs.label))
        if float(overlap[here, there]) < 0.9:
            break
        if here not in pairs[0] and there not in pairs[1]:
            pairs[0].append(here)
            pairs[1].append(there)
    return pairs


def _header(detector: Detector) -> dict[str, str]:
    """The header of a safetensors file: what save_detector writes."""
    return {
        "format": "pt",
        "task": "detection",
        "model": detector.name,
        "classes": json.dumps(detector.classes),
    }


def _write_config(folder: Path, detector: Detector) -> None:
    text = json.dumps(facts_of(detector), indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _reloaded(path: Path, detector: Detector) -> Finder:
    """Through the code that the card shows: what it builds is what is compared."""
    code = loading_code(detector).partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"model.safetensors"', repr(str(path))).partition("found =")[0], names)

    def find(picture: Tensor) -> Detections:
        found = names["model"]([picture])[0]
        return Detections(found["boxes"], found["labels"], found["scores"])

    return find


def loading_code(detector: Detector) -> str:
    """Markdown with the code that builds the detector from torchvision's parts and reads its weights."""
    backbone, shape, arguments = parse_name(detector.name)
    family, _, rest = backbone.partition("/")
    pyramid, spec = build_pyramid(
        backbone, levels=shape.levels, channels=shape.channels, pretrained=False, arguments=arguments
    )
    levels, strides = pyramid.levels, pyramid.strides
    frozen = any(type(module).__name__.startswith("FrozenBatchNorm") for module in detector.net.modules())
    body = (
        _timm_body(rest, arguments, shape.levels, detector)
        if family == "timm"
        else _torchvision_body(rest, pyramid)
    )
    eps = next((m.eps for m in detector.net.modules() if type(m).__name__ == "FrozenBatchNorm2d"), None)
    freeze = "body = freeze_batch_norm_2d(body)\n" if frozen else ""
    if frozen and eps == 0.0:
        freeze += "for m in body.modules(): m.eps = 0.0\n"
    sizes = tuple((round(stride * shape.anchors),) for stride in strides)
    widths = [int(block[0].in_channels) for block in detector.net.backbone.fpn.inner_blocks]
    longest = shape.max_size or round(shape.size * 1333 / 800)
    return f"""`model.safetensors` holds the state dict of torchvision's Faster R-CNN, built like this:

```python
from collections import OrderedDict
import torch
from safetensors.torch import load_file
from timm.layers import freeze_batch_norm_2d
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
{body}{freeze}
class Pyramid(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.out_channels = body, {shape.channels}
        self.fpn = FeaturePyramidNetwork({widths}, {shape.channels}, extra_blocks=LastLevelMaxPool())

    def forward(self, images):
        maps = self.body(images)
        maps = list(maps.values()) if isinstance(maps, dict) else maps
        return OrderedDict(zip({list(levels)}, self.fpn(OrderedDict(zip({list(levels[:-1])}, maps))).values()))

model = FasterRCNN(
    Pyramid(), min_size={shape.size}, max_size={longest}, image_mean={list(spec.mean)}, image_std={list(spec.std)},
    rpn_anchor_generator=AnchorGenerator({sizes}, ((0.5, 1.0, 2.0),) * {len(sizes)}),
    box_roi_pool=MultiScaleRoIAlign({list(levels[:-1])}, 7, sampling_ratio=2),
    box_head=TwoMLPHead({shape.channels * 49}, {shape.head}),
    box_predictor=FastRCNNPredictor({shape.head}, {detector.num_classes}),
    rpn_pre_nms_top_n_test={max(shape.proposals // 2, 1)}, rpn_post_nms_top_n_test={max(shape.proposals // 2, 1)},
)
model.load_state_dict(load_file("model.safetensors"))
model.eval().requires_grad_(False)
found = model([picture])[0]  # RGB in [0, 1], 3 x height x width; boxes, labels (from 1), scores
```"""


def _timm_body(rest: str, arguments: dict[str, Any], levels: tuple[int, int], detector: Detector) -> str:
    from outgrow.models.timm_extra import TIMM_EXTRA

    body: Any = detector.net.backbone.body
    indices = tuple(body.feature_info.out_indices)
    words = "".join(f", {key}={value!r}" for key, value in arguments.items())
    features = f"features_only=True, out_indices={indices}{words}"
    if rest == "mobilenetv2_100_tf2_224":
        return f'import timm\n\nbody = timm.create_model("mobilenetv2_100", pad_type="same", {features})\n'
    if rest in TIMM_EXTRA:
        build: Any = TIMM_EXTRA[rest][0]
        return (
            "from timm.models.efficientnet import _gen_mobilenet_v1\n\n"
            f'body = _gen_mobilenet_v1("mobilenetv1_100", {build.args[0]}, pad_type="same", {features})\n'
        )
    return f'import timm\n\nbody = timm.create_model("{rest}", {features})\n'


def _torchvision_body(rest: str, pyramid: Any) -> str:
    layers = dict(pyramid.body.return_layers)
    return (
        "import torchvision\nfrom torchvision.models._utils import IntermediateLayerGetter\n\n"
        f'net = torchvision.models.get_model("{rest}")\n'
        f'body = IntermediateLayerGetter(getattr(net, "features", net), {layers})\n'
    )


_ONNX_LOADING = """`model.onnx` needs onnxruntime alone. It takes one float32 RGB picture in [0, 1], 3 x height x width in the
size that it has; its metadata hold the classes:

```python
import json, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
boxes, labels, scores = session.run(None, {"image": picture})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])  # of label i: classes[i - 1]
```"""
