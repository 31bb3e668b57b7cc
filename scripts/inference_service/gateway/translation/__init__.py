"""From one wire format to the other, without any input or output of its own: requests, answers, streams, errors."""
