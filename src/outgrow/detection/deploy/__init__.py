"""What :mod:`outgrow.detection.export` writes, by the kind of detector.

export_code.py         the code that loads exported weights without this library
transformer_export.py  the files of a detection transformer
"""
