"""Where a detection transformer starts from: a classifier's weights in the backbone, and everything else at random.

    checkpoint(folder, "rtdetr", backbone="mobilenetv1_025_128", weights=FILE, size=160, width=64)

writes a folder in the layout of the Hugging Face hub, which Outgrow and transformers read. Its name is ``hf/FOLDER``.
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from timm.models import register_model
from torch import nn

from outgrow.models.timm_extra import TIMM_EXTRA
from outgrow.models.weights import read_weights

CLASSES = {"rtdetr": "RTDetrV2", "dfine": "DFine"}
STRIDES = (8, 16, 32)


@register_model
def mobilenetv1_025_128(pretrained: bool = False, **more: Any) -> nn.Module:
    """So that transformers, which builds backbones by timm's names, finds it."""
    return TIMM_EXTRA["mobilenetv1_025_128"][0](**{"num_classes": 0, **more})


def checkpoint(
    folder: Path,
    family: str,
    *,
    backbone: str,
    weights: Path,
    size: int,
    width: int,
    queries: int,
    layers: int,
    classes: tuple[str, ...],
    seed: int,
) -> str:
    """Write the folder if it is not there yet, and return the detector's name."""
    last = folder / "preprocessor_config.json"
    if last.is_file():
        return f"hf/{folder}"
    stages = timm.create_model(backbone, features_only=True).feature_info
    at = [number for number, stride in enumerate(stages.reduction()) if stride in STRIDES]
    # timm's own freezing: transformers' would take the activation out of timm's batch norms
    own = transformers.TimmBackboneConfig(backbone=backbone, out_indices=at, freeze_batch_norm_2d=True)
    config = getattr(transformers, f"{CLASSES[family]}Config")(
        backbone_config=own,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[stages.channels()[number] for number in at],
        encoder_hidden_dim=width,
        encoder_ffn_dim=4 * width,
        d_model=width,
        decoder_in_channels=[width] * 3,
        decoder_ffn_dim=4 * width,
        decoder_layers=layers,
        num_queries=queries,
        hidden_expansion=0.5,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    torch.manual_seed(seed)
    net = getattr(transformers, f"{CLASSES[family]}ForObjectDetection")(config)
    state, metadata = read_weights(weights)
    inner = net.model.backbone.model._backbone
    missing, _ = inner.load_state_dict(state, strict=False)
    wrong = [key for key in missing if not key.endswith("num_batches_tracked")]
    if wrong:
        raise ValueError(f"{weights}: needs the weights of {backbone}, got none for {', '.join(wrong[:3])}.")
    net.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    preparation = {
        "size": {"height": size, "width": size},
        "do_normalize": True,
        "image_mean": metadata.get("mean", half),
        "image_std": metadata.get("std", half),
    }
    last.write_text(json.dumps(preparation))
    return f"hf/{folder}"
