"""Object detection: a row is a proposal, an anchor, a point or a query of the student, features are maps by their stride.

data = open_boxes("coco:IMAGES:ANNOTATIONS")
student = create_detector("fasterrcnn:timm/mobilenetv2_100", data.classes)
teacher = FrozenDetector(create_detector(..., weights=...), data.classes)
lesson = Detect()(student, teacher, scenes)        # then rectify and objective, as for images

    boxes.py                                      truth and detections
    layouts/                                      how images with boxes are stored: COCO, YOLO, Pascal VOC, the hub
    data.py  unlabelled.py  describe.py           what is read from them; pictures without annotations
    views.py  loader.py                           batches of views
    families/                                     detectors, created by name
    lesson.py  scale.py                           student and teacher on a batch
    run_data.py  student.py  teacher.py           the parts of a run
    scores.py  intervals.py  errors.py            AP, how far it depends on the images, errors by class
    evaluation.py  cost.py                        a detector on a split, its time and size
    record.py  pictures.py  page.py  templates/   a run's record, drawn images and page
    audit.py  rehearsal.py                        before a run
    export.py  predict.py  deploy/                after it
    task.py                                       the interface to `outgrow.run`
"""

from outgrow.detection.boxes import Detections, Scenes, Truth
from outgrow.detection.data import DetectionData, DetectionSplit, open_boxes, open_coco
from outgrow.detection.errors import class_errors
from outgrow.detection.families.create import create_detector, save_detector
from outgrow.detection.families.detector import Detector, FrozenDetector
from outgrow.detection.lesson import Balanced, Detect
from outgrow.detection.loader import MixedScenes, make_scene_loader
from outgrow.detection.scores import CocoScores, coco_scores
from outgrow.detection.unlabelled import marked_by, open_pictures

__all__ = [
    "Balanced",
    "CocoScores",
    "Detect",
    "DetectionData",
    "DetectionSplit",
    "Detections",
    "Detector",
    "FrozenDetector",
    "MixedScenes",
    "Scenes",
    "Truth",
    "class_errors",
    "coco_scores",
    "create_detector",
    "make_scene_loader",
    "marked_by",
    "open_boxes",
    "open_coco",
    "open_pictures",
    "save_detector",
]
