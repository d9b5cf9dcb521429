"""Detectors of the paper on a backbone of choice: class-aware RPN, Faster R-CNN, R-FCN."""
