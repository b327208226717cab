"""The values of keywords: limits, resources, environments, dates; text in, plain data out."""

import math
import re
import time

from .jcf import RefusedError

UNLIMITED = {"rlim_infinity", "unlimited", "copy"}
BYTES = {"b": 1, "w": 4}
FACTORS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
MEMORY = {"consumablememory", "consumablevirtualmemory", "consumablelargepagememory"}
CONSUMABLE = re.compile(r"([A-Za-z]\w*)\s*\(\s*([^)]*?)\s*\)\s*")


def megabytes(text):
    """Return `text`, such as `3200`, `1 gb` or `750Mb`, in units of 2**20 bytes, rounded up."""
    match = re.fullmatch(r"(\d+)\s*(?:([kmgtpe]?)([bw]))?", text.strip().lower())
    if not match:
        raise RefusedError(f"{text!r} is not an amount of memory")
    number, factor, unit = match.groups()
    if unit is None:
        return int(number)
    return math.ceil(int(number) * BYTES[unit] * 1024 ** FACTORS[factor] / 2**20)


def resources(text):
    """Return `ConsumableCpus(2) ConsumableMemory(1 gb)` as a dict of small names; MB for memory."""
    amounts = {}
    end = 0
    for match in CONSUMABLE.finditer(text):
        if match.start() != end:
            break
        name, amount = match[1].lower(), match[2]
        if name in MEMORY:
            amounts[name] = megabytes(amount)
        elif re.fullmatch(r"\d+", amount):
            amounts[name] = int(amount)
        else:
            raise RefusedError(f"{match[1]}({amount}): the count is not an integer")
        if amounts[name] <= 0:
            raise RefusedError(f"{match[1]}({amount}): the count must be positive")
        end = match.end()
    if end != len(text):
        raise RefusedError(f"syntax error in resources: {text[end:]!r}")
    return amounts


def seconds(text):
    """Return `[[hh:]mm:]ss[.fraction]` in seconds, None when it means no limit."""
    text = text.strip().lower()
    if text in UNLIMITED:
        return None
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d+)?", text):
        raise RefusedError(f"{text!r} is not a limit of time")
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def limits(text):
    """Return `hard[,soft]` as `[hard, soft]`; the soft limit defaults to the hard one."""
    hard, *soft = [seconds(part) for part in text.strip().strip('"').split(",")]
    if len(soft) > 1:
        raise RefusedError(f"{text!r} has more than two limits")
    soft = soft[0] if soft else hard
    if hard is not None and (soft is None or soft > hard):
        raise RefusedError(f"{text!r}: the soft limit is above the hard limit")
    return [hard, soft]


def count_range(text):
    """Return `n` or `min,max` as `(min, max)`."""
    match = re.fullmatch(r"(\d+)(?:\s*,\s*(\d+))?", text.strip())
    if not match or int(match[1]) < 1:
        raise RefusedError(f"{text!r} is not a number of nodes or tasks")
    return int(match[1]), int(match[2] or match[1])


def environment(text, submitter):
    """Return what `COPY_ALL; $VAR; !VAR; VAR=value` takes from the submitter's environment."""
    chosen, dropped = {}, set()
    for entry in filter(None, (part.strip() for part in text.strip().strip('"').split(";"))):
        name, is_assignment, value = entry.partition("=")
        if is_assignment:
            chosen[name.strip()] = value.strip()
        elif entry.upper() == "COPY_ALL":
            chosen = {**submitter, **chosen}
        elif entry.startswith("!"):
            dropped.add(entry[1:].strip())
        elif entry.startswith("$"):
            name = entry[1:].strip()
            chosen.update({name: submitter[name]} if name in submitter else {})
        else:
            raise RefusedError(f"syntax error in environment: {entry!r}")
    return {name: value for name, value in chosen.items() if name not in dropped}


def start_time(text):
    """Return `MM/DD/YY HH:MM[:SS]` as seconds since the epoch."""
    for pattern in ("%m/%d/%y %H:%M", "%m/%d/%y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y %H:%M:%S"):
        try:
            return time.mktime(time.strptime(text.strip().strip('"'), pattern))
        except ValueError:
            continue
    raise RefusedError(f"{text!r} is not a date MM/DD/YY HH:MM[:SS]")
