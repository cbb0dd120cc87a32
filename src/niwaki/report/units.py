"""Write numbers for people: bytes, seconds, counts, ratios, points."""

from __future__ import annotations

NONE = "–"


def figures(value: float, digits: int = 3) -> str:
    """Write a number with about `digits` significant figures and no exponent.

    >>> figures(90.87), figures(1.0493), figures(1234.5), figures(0.01234)
    ('90.9', '1.05', '1,234', '0.0123')
    """
    if value == 0:
        return "0"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if whole:
        return f"{value:,.{max(digits - whole, 0)}f}"
    leading = f"{abs(value):.12f}".split(".")[1]
    return f"{value:.{min(len(leading) - len(leading.lstrip('0')) + digits, 9)}f}"


def size(value: float | None) -> str:
    """Write bytes in decimal units, as file managers and downloads count them.

    >>> size(90_870_000), size(512), size(None)
    ('90.9 MB', '512 B', '–')
    """
    return _scaled(value, ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B")))


def seconds(value: float | None) -> str:
    """Write a time in the unit that suits it; a tenth of a millisecond is still in milliseconds.

    >>> seconds(0.00105), seconds(0.00071), seconds(0.0000213), seconds(83.0)
    ('1.05 ms', '0.710 ms', '21.3 µs', '1 min 23 s')
    """
    if value is not None and value >= 60:
        minutes, rest = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    if value is not None and 1e-4 <= value < 1e-3:
        return f"{figures(value * 1e3)} ms"
    return _scaled(value, ((1, " s"), (1e-3, " ms"), (1e-6, " µs")))


def count(value: float | None) -> str:
    """Write a count.

    >>> count(22_700_000), count(872), count(10_600_000_000)
    ('22.7 M', '872', '10.6 G')
    """
    return _scaled(value, ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, "")))


def times(value: float | None) -> str:
    """Write a ratio.

    >>> times(3.94), times(12.34), times(0.8)
    ('3.9×', '12×', '0.80×')
    """
    if value is None:
        return NONE
    return f"{value:.0f}×" if value >= 11.95 else f"{value:.1f}×" if value >= 1.05 else f"{value:.2f}×"


def points(value: float | None, metric: object = None) -> str:
    """Write a difference in points, or in the metric's own unit, always with its sign.

    >>> points(-0.573), points(0.2), points(0.0), points(0.0123, "nats")
    ('−0.57', '+0.20', '0.00', '+0.0123')
    """
    if value is None:
        return NONE
    text = quality(abs(value), metric)
    return text if not text.strip("0.") else ("−" if value < 0 else "+") + text


def quality(value: float, metric: object) -> str:
    """Write the value of a metric: nats, of which a hundredth is much, with four decimals.

    >>> quality(90.25, "accuracy"), quality(1.35231, "nats")
    ('90.25', '1.3523')
    """
    return f"{value:.{4 if metric == 'nats' else 2}f}"


def unit(metric: object) -> str:
    """Name the unit of a metric's differences.

    >>> unit("accuracy"), unit("nats"), unit("perplexity")
    ('points', 'nats', 'of perplexity')
    """
    return {"nats": "nats", "perplexity": "of perplexity"}.get(str(metric), "points")


def percent(share: float | None) -> str:
    """Write a share of one as a percentage.

    >>> percent(0.0344), percent(1.0), percent(0.9996)
    ('3.4%', '100%', '99.96%')
    """
    if share is None:
        return NONE
    if share == 1:
        return "100%"
    # 99.96% rounded to 100% would hide the rows that disagree
    return f"{100 * share:.2f}%" if 0.995 <= share < 1 else f"{100 * share:.1f}%"


def probability(value: float | None) -> str:
    """Write a p-value.

    >>> probability(0.4381), probability(0.00002)
    ('0.44', '<0.001')
    """
    if value is None:
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.095 else f"{value:.2f}"


def words(name: str) -> str:
    """Write a key as words.

    >>> words("instruction_set")
    'instruction set'
    """
    return name.replace("_", " ")


def listed(items: list[str]) -> str:
    """Join items as a sentence does.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def _scaled(value: float | None, scales: tuple[tuple[float, str], ...]) -> str:
    if value is None:
        return NONE
    for scale, unit in scales:
        if abs(value) >= scale * 0.9995:
            return figures(value / scale) if not unit and value == int(value) else figures(value / scale) + unit
    scale, unit = scales[-1]
    return figures(value / scale) + unit
