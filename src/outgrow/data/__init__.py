"""Data: one line of text opens any source of labelled images; loaders make reproducible batches.

data = open_data("folder:photos", val_fraction=0.1)
loader = make_loader(data.train, batch_size=64, augment=Augment(), size=224, shuffle=True)
for batch in loader.epoch(0):
    batch.images, batch.target

    source.py  unlabelled.py                      open a source, with its labels or without
    folder.py  parquet.py  hub.py                 readers: class folders, Parquet shards, the Hugging Face hub
    files.py  labels.py                           image files in a folder; a column of labels as classes
    reading.py                                    a split of what was read, for all readers
    identity.py  pixels.py  cache.py              digests, decoding, decoded or packed copies on disk
    splits.py                                     sets of labelled images: ArraySplit, FileSplit, ImageData
    table.py  exclusion.py                        small CSV files; the list of images to leave out
    classes.py  class_map.py                      a network's classes among the data's, by name or by a list
    randomness.py                                 draws that depend on seed, epoch and sample alone
    geometry.py  transforms.py  randaugment.py    resizing and crops; augmentations; RandAugment
    plan.py                                       which samples make up which batch
    tensor_loader.py  file_loader.py              batches of decoded images; of encoded ones
    loader.py  mixed.py                           make_loader; batches with unlabelled images too
    notes.py  describe.py                         warnings; a summary and a contact sheet
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
