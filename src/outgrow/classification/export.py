"""Export the student of a run to files that load without this library.

    safetensors   in the layout of the library of the network (timm, transformers, torchvision)
    torch         torch.export's ``.pt2``: any network; needs torch only
    onnx          any network; needs onnxruntime only; optionally with 8 bits

Every file is loaded again and compared with the student on real images.
"""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from outgrow.classification.data import RunData, eval_loader, open_run_data
from outgrow.classification.layout import layout_of
from outgrow.classification.scores import evaluate
from outgrow.classification.view import EvalView, eval_view, whole_size
from outgrow.data import Split
from outgrow.data.files import read_picture
from outgrow.data.notes import DataWarning, printable
from outgrow.data.pixels import decode
from outgrow.models import Network, create_model
from outgrow.models.network import fit_size
from outgrow.models.portable import (
    OnnxModel,
    program_of,
    read_program,
    require,
    write_onnx,
    write_program,
)
from outgrow.models.weights import network_state, read_weights, write_weights
from outgrow.training.config import TrainConfig
from outgrow.training.deployment import ADVICE, Exported, ExportedFile, FinishedRun, Request, public_name
from outgrow.training.progress import Reporter

WEIGHTS, PROGRAM, ONNX, ONNX8 = "model.safetensors", "model.pt2", "model.onnx", "model.int8.onnx"
ROUNDING = 1e-4
"""Largest difference of logits, relative to the largest logit, that counts as rounding. Measured: 1e-7 to 1e-6."""
COMPARED = 64
"""Number of test images for the comparison."""
CALIBRATION = 256
"""Number of training images for the calibration of int8."""


@dataclass(frozen=True)
class Images:
    """Images in [0, 1], at the input size of the network, to compare files on. ``source`` describes them in messages."""

    images: Float[Tensor, "n 3 height width"]
    source: str


def export_student(run: FinishedRun, request: Request, report: Reporter) -> Exported:
    """Write the requested formats. ``ValueError`` if a file differs from the student by more than rounding, or if a
    format is impossible."""
    network = load_student(run)
    data, notes = _open(run)
    whole = run.record.data.image_size if data is None else whole_size(data.test)
    view = eval_view(network.input_spec, whole)
    compared = _images(run, request, network, view, data)
    side = (compared.images.shape[2], compared.images.shape[3])
    files, loading = [], []
    layout = layout_of(network, view)
    formats = request.formats
    if request.int8 and "onnx" not in formats:
        formats = (*formats, "onnx")
    facts = _facts(network, view)
    if "safetensors" in formats:
        write_weights(
            layout.state or network_state(network), request.folder / WEIGHTS, _header(network, view)
        )
        layout.write(request.folder)
        files.append(_checked(request.folder / WEIGHTS, layout.load(request.folder), network, [compared]))
        loading.append(layout.loading)
        if not layout.elsewhere and formats == ("safetensors",):
            notes.append(
                f"{WEIGHTS}: loads only with outgrow; --format torch and --format onnx write files that load without it"
            )
    if "torch" in formats or "onnx" in formats:
        program, any_size = program_of(network, side, any_size=network.input_spec.size is None)
        facts["input"]["side"] = None if any_size else list(side)
        probes = _probes(compared, any_size)
        size = "any size" if any_size else f"{side[0]} x {side[1]} pixels"
        if "torch" in formats:
            write_program(program, request.folder / PROGRAM, facts)
            files.append(
                _checked(request.folder / PROGRAM, read_program(request.folder / PROGRAM)[0], network, probes)
            )
            loading.append(_PROGRAM_LOADING.format(size=size))
        if "onnx" in formats:
            write_onnx(program, request.folder / ONNX, facts)
            model = OnnxModel(request.folder / ONNX)
            files.append(_checked(request.folder / ONNX, lambda x: model(x)[0], network, probes))
            loading.append(_ONNX_LOADING.format(size=size))
    if request.int8:
        files.append(_quantized(request, network, view, data, compared))
        loading.append(f"`{ONNX8}` loads like `{ONNX}`; its weights and activations have 8 bits.")
    for one in files:
        report.note(f"{one.name} ({one.bytes / 1e6:.2f} MB): {one.check}")
    return Exported(
        files=tuple(files),
        library=layout.library,
        loading="\n\n".join(loading),
        pipeline="image-classification",
        preparation=f"RGB, {view}, divided by 255",
        notes=tuple(notes),
    )


def load_student(run: FinishedRun, *, command: str = "export") -> Network:
    """The student of a run, in eval mode. ``ValueError`` if it cannot be built from its name."""
    record = run.record
    name, classes = record.student.name, record.data.classes
    stated = read_weights(run.student)[1]
    if ":" not in name and "/" not in name:
        raise ValueError(
            f"{command} {run.folder}: needs a student that can be built from its name, got one that was passed to "
            f"outgrow.distill as a module ({name!r}); put it into a file and run again with --student py:FILE:CALLABLE."
        )
    count = int(stated.get("num_classes") or len(classes))
    if classes and count != len(classes):
        raise ValueError(
            f"{command} {run.folder}: needs a student for the run's {len(classes)} classes, got {run.student.name} with "
            f"{count} classes; restore the file, or run again."
        )
    network = create_model(
        name, count, weights=run.student, input_size=record.config.student.input_size
    ).eval()
    network.classes = network.classes or classes or None
    return network.requires_grad_(False)


def _open(run: FinishedRun) -> tuple[RunData | None, list[str]]:
    """The data of the run if they are still available, and notes about them."""
    record = run.record
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # the run has printed them already
            data = open_run_data(record.config)
    except (ValueError, OSError) as error:
        return None, [
            f"the run's data cannot be opened ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ]
    if data.source.fingerprint != record.data.fingerprint:
        return data, ["the run's data have changed since the run"]
    return data, []


def _images(
    run: FinishedRun, request: Request, network: Network, view: EvalView, data: RunData | None
) -> Images:
    """Test images of the run; if they cannot be opened, those of ``--images``; else noise."""
    if data is not None:
        return Images(
            _prepared(data.test, COMPARED, network),
            f"{min(COMPARED, len(data.test))} test images of the run",
        )
    if request.images:
        return Images(_pictures(request.images, COMPARED, network, view), "the images of --images")
    side = network.input_spec.size or run.record.config.data.size or view.size
    noise = torch.rand(16, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Images(
        noise, "16 random images, as the run's own cannot be opened; set --images to compare on yours"
    )


def _prepared(split: Split, most: int, network: Network) -> Float[Tensor, "n 3 height width"]:
    """Evenly spaced images of a split, prepared as in an evaluation, not normalised."""
    chosen = _spaced(len(split), most)
    loader = eval_loader(
        split.subset(chosen), network, TrainConfig(batch_size=16), torch.device("cpu"), workers=0
    )
    return torch.cat([fit_size(batch.images, network.input_spec) for batch in loader.epoch(0)])


def _spaced(count: int, most: int) -> Int64[Tensor, " n"]:
    """At most ``most`` evenly spaced places of ``count``."""
    return torch.linspace(0, count - 1, min(most, count)).round().long().unique()


def _pictures(
    paths: tuple[Path, ...], most: int, network: Network, view: EvalView
) -> Float[Tensor, "n 3 height width"]:
    """Evenly spaced images of ``paths``, prepared as in a prediction, not normalised."""
    spec = replace(network.input_spec, size=network.input_spec.size or view.size)
    chosen = [str(paths[at]) for at in _spaced(len(paths), most).tolist()]
    shown = [
        view.of(decode(read_picture(path), where=lambda path=path: printable(path), advice=ADVICE))  # type: ignore[misc]
        for path in chosen
    ]
    return torch.cat([fit_size(image[None], spec) for image in shown])


def _probes(compared: Images, any_size: bool) -> list[Images]:
    """The images, the first one as a batch of one, and all at another size if the file takes any size."""
    probes = [compared, Images(compared.images[:1], "")]
    if any_size:
        height, width = compared.images.shape[2:]
        larger = F.interpolate(
            compared.images[:4], size=(height + 8, width + 24), mode="bilinear", antialias=True
        )
        probes.append(Images(larger, ""))
    return probes


@torch.no_grad()
def _checked(
    path: Path, exported: Callable[[Tensor], Tensor], network: Network, probes: list[Images]
) -> ExportedFile:
    """The file and its comparison with the student. ``ValueError`` if they differ by more than rounding."""
    largest, same, scale = 0.0, 0, 1.0
    for number, probe in enumerate(probes):
        for images in probe.images.split(16):
            ours, found = network(images), exported(images)
            difference = float((ours - found).abs().max()) if ours.shape == found.shape else float("inf")
            largest = max(largest, difference if difference == difference else float("inf"))
            scale = max(scale, float(ours.abs().max()))
            if number == 0 and ours.shape == found.shape:
                same += int((ours.argmax(1) == found.argmax(1)).sum())
    count = len(probes[0].images)
    check = (
        f"largest difference {largest:.1e} in logits up to {scale:.1f}, same top class on {same} of {count} "
        f"({probes[0].source})"
    )
    if not largest <= ROUNDING * scale:
        raise ValueError(
            f"export: needs the logits of {path.name} to equal the student's, got {check}; nothing was written. Leave "
            "this format out (--format), and please report the name of the network."
        )
    return ExportedFile(path.name, path.stat().st_size, check)


def _facts(network: Network, view: EvalView) -> dict[str, Any]:
    """The metadata of an exported file."""
    return {
        "task": "classification",
        "model": public_name(network.name),
        "classes": list(network.classes or map(str, range(network.num_classes))),
        "input": {
            "images": "float32, batch x 3 x height x width, RGB in [0, 1]; normalised inside",
            "side": None,
        },
        "view": asdict(view),
    }


def _header(network: Network, view: EvalView) -> dict[str, str]:
    """The metadata of a safetensors file: as in ``save_student``, plus the task."""
    return {
        "format": "pt",
        "task": "classification",
        "model": public_name(network.name),
        "num_classes": str(network.num_classes),
        "input_spec": json.dumps(asdict(network.input_spec)),
        "classes": json.dumps(list(network.classes or map(str, range(network.num_classes)))),
        "view": json.dumps(asdict(view)),
    }


def _quantized(
    request: Request, network: Network, view: EvalView, data: RunData | None, compared: Images
) -> ExportedFile:
    """The ONNX file with weights and activations of 8 bits, and its accuracy."""
    require("onnx", "onnxruntime", what="--quantize int8")
    if data is not None:
        images = _prepared(data.train, CALIBRATION, network)
    elif request.images:
        images = _pictures(request.images, CALIBRATION, network, view)
    else:
        raise ValueError(
            "--quantize int8: needs images for the calibration of activations, got none, as the run's data cannot be opened; "
            "give some with --images."
        )
    source, path = request.folder / ONNX, request.folder / ONNX8
    quantize(source, path, images)
    model = OnnxModel(path)
    agreed = sum(
        int((network(part).argmax(1) == model(part)[0].argmax(1)).sum()) for part in compared.images.split(16)
    )
    check = f"same top class on {agreed} of {len(compared.images)} ({compared.source})"
    if data is not None:
        test = eval_loader(data.test, network, TrainConfig(batch_size=16), torch.device("cpu"), workers=0)
        full, quantized = evaluate(network, test).top1, evaluate(_OnnxNetwork(model, network), test).top1
        check = (
            f"top-1 {quantized:.2f} % on {len(data.test)} test images, {full:.2f} % in float32; ranges from {len(images)} "
            f"training images; {check}"
        )
    else:
        check += f"; ranges from {len(images)} images of --images"
    return ExportedFile(path.name, path.stat().st_size, check)


def quantize(source: Path, path: Path, images: Float[Tensor, "n 3 height width"]) -> None:
    """Static int8 quantisation of an exported ONNX file, with one scale per channel of the weights."""
    import logging

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.parts: Iterator[Tensor] = iter(images.split(16))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.parts, None)
            return None if part is None else {"images": part.numpy()}

    prepared = path.with_suffix(".prepared")
    loud = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
    except Exception as error:
        # it writes without looking whether it could, and reads half a file
        if shutil.disk_usage(path.parent).free < source.stat().st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        logging.disable(loud)
        prepared.unlink(missing_ok=True)


class _OnnxNetwork(nn.Module):
    """An ONNX file with the interface of a network."""

    def __init__(self, model: OnnxModel, network: Network) -> None:
        super().__init__()
        self.model, self.spec = model, network.input_spec

    def forward(self, images: Tensor) -> Tensor:
        return self.model(fit_size(images, self.spec))[0]


_PROGRAM_LOADING = """`model.pt2` needs only torch. It takes any number of float32 RGB images in [0, 1] of {size}, and
normalises them itself:

```python
import torch

model = torch.export.load("model.pt2").module()
logits = model(images)
```"""

_ONNX_LOADING = """`model.onnx` needs only onnxruntime. It takes any number of float32 RGB images in [0, 1] of {size}, and
normalises them itself. Its metadata has the classes:

```python
import json, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(None, {{"images": images}})[0]
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
```"""
