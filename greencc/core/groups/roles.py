"""What a tensor axis is to the channels of a prune group."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """What a tensor axis has to do with the channels of a group."""

    PRODUCER = "producer"  # The output axis of a weight: cutting it, the channel is not computed.
    CONSUMER = "consumer"  # The axis of a weight that is summed over: cutting it, the channel is not read.
    PARAMETER = "parameter"  # One value per channel: biases, normalisations, depthwise weights, constants.
