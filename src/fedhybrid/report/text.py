"""Numbers as people read them: MiB, seconds to hours, kJ, per cent."""

from __future__ import annotations

__all__ = ["MIB", "duration", "energy", "mib", "percent", "shorten", "time_scale"]

MIB = 2**20
_GAP = "\u00a0"  # a no-break space keeps a number and its unit on one line


def mib(total_bytes: float, digits: int = 1) -> str:
    """Bytes as MiB; more digits where the number would round to zero.

    >>> mib(100663296).split(), mib(1024).split()
    (['96.0', 'MiB'], ['0.00098', 'MiB'])
    """
    amount = total_bytes / MIB
    small = amount != 0 and abs(amount) < 0.5 * 10**-digits
    return f"{amount:.2g}{_GAP}MiB" if small else f"{amount:,.{digits}f}{_GAP}MiB"


def energy(energy_j: float) -> str:
    """Joules as kJ, small ones as J, and as what a battery or a bill counts.

    >>> energy(276.8).replace(_GAP, " "), energy(7.2e6).replace(_GAP, " ")
    ('276.8 J (0.0769 Wh)', '7,200.0 kJ (2,000 Wh)')
    """
    hours = energy_j / 3600
    watt_hours = f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
    amount = f"{energy_j / 1e3:,.1f}{_GAP}kJ" if energy_j >= 1e3 else f"{energy_j:.1f}{_GAP}J"
    return f"{amount} ({watt_hours}{_GAP}Wh)"


def percent(ratio: float, digits: int = 1) -> str:
    """A ratio (0 to 1) in per cent.

    >>> percent(0.9134).split(), percent(0.00002).split()
    (['91.3', '%'], ['0.002', '%'])
    """
    amount = 100 * ratio
    small = amount != 0 and abs(amount) < 0.5 * 10**-digits
    return f"{amount:.2g}{_GAP}%" if small else f"{amount:.{digits}f}{_GAP}%"


def time_scale(longest_s: float) -> tuple[float, str]:
    """Seconds in the unit that suits times up to `longest_s`, and its name.

    >>> time_scale(30.0), time_scale(1000.0), time_scale(1e5)
    ((1.0, 's'), (60.0, 'min'), (3600.0, 'h'))
    """
    if longest_s < 120:
        return 1.0, "s"
    return (60.0, "min") if longest_s < 7200 else (3600.0, "h")


def duration(time_s: float) -> str:
    """A span of time.

    >>> [duration(t).replace(_GAP, " ") for t in (0.0042, 12.34, 600.0, 86400.0)]
    ['4.2 ms', '12.3 s', '10.0 min', '24.0 h']
    """
    if time_s == 0:
        return f"0{_GAP}s"
    if 0 < time_s < 1:
        return f"{time_s * 1e3:.1f}{_GAP}ms"
    unit_s, unit = time_scale(time_s)
    return f"{time_s / unit_s:,.1f}{_GAP}{unit}"


def shorten(label: str, longest: int) -> str:
    """A label of at most `longest` characters; the middle gives way, because names often differ at their ends.

    >>> shorten("fedhybrid", 20), shorten("a-very-long-variant-7", 10)
    ('fedhybrid', 'a-ver\u2026nt-7')
    """
    if len(label) <= longest:
        return label
    tail = (longest - 1) // 2
    return label[: longest - 1 - tail] + "\u2026" + label[len(label) - tail :]
