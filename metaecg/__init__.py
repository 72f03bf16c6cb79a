"""metaecg: ten labelled windows per class from a new patient in, that patient's own detector out."""

__version__ = "0.1.0"
