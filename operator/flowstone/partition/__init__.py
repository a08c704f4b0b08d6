"""Partitions: typed keys, ranges and sets of any number of dimensions, lazy, and right about time."""

from flowstone.partition.dimensions import Dimension, Window
from flowstone.partition.intervals import compress, expand
from flowstone.partition.keys import Key, KeyElement, deserialize, serialize
from flowstone.partition.making import explicit, product, union
from flowstone.partition.ranges import Range, generate_range
from flowstone.partition.sets import PartitionSet
from flowstone.partition.steps import Step
from flowstone.partition.values import Span, Values, range_of, values_of

__all__ = [
    "Dimension",
    "Key",
    "KeyElement",
    "PartitionSet",
    "Range",
    "Span",
    "Step",
    "Values",
    "Window",
    "compress",
    "deserialize",
    "expand",
    "explicit",
    "generate_range",
    "product",
    "range_of",
    "serialize",
    "union",
    "values_of",
]
