"""Partitions: typed keys, ranges and sets of any number of dimensions, lazy, and right about time."""

from flowstone.partition.keys import Key, KeyElement, deserialize, serialize
from flowstone.partition.ranges import Range, generate_range

__all__ = ["Key", "KeyElement", "Range", "deserialize", "generate_range", "serialize"]
