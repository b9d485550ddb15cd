"""Data: one line of text opens any source of labelled images; loaders make reproducible batches.

data = open_data("folder:photos", val_fraction=0.1)
loader = make_loader(data.train, batch_size=64, augment=Augment(), size=224, shuffle=True)
for batch in loader.epoch(0):
    batch.images, batch.target
"""

from outgrow.data.loader import Batch, Loader, make_loader
from outgrow.data.mixed import MixedLoader
from outgrow.data.notes import DataWarning
from outgrow.data.plan import drops_last
from outgrow.data.source import open_data
from outgrow.data.splits import ArraySplit, FileSplit, ImageData, Split
from outgrow.data.transforms import Augment

__all__ = [
    "ArraySplit",
    "Augment",
    "Batch",
    "DataWarning",
    "FileSplit",
    "ImageData",
    "Loader",
    "MixedLoader",
    "Split",
    "drops_last",
    "make_loader",
    "open_data",
]
