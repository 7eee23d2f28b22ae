"""ISO 8601 durations, as Azure writes limits, probes and request settings."""

import re


def seconds(text: str) -> float:
    """``PT1H30M``, ``P1DT2H`` or ``PT0.5S`` in seconds. Raises ValueError for anything else."""
    match = re.fullmatch(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?", text)
    if match is None or not any(match.groups()):
        raise ValueError(f"'{text}' is not an ISO 8601 duration such as PT1H or PT90S.")
    days, hours, minutes, rest = (float(part or 0) for part in match.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + rest
