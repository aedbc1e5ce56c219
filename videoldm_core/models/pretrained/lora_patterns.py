"""Matches the patterns of a LoRA file with layers; started as a process of its own.

A pattern is a regular expression from somebody else's file. One of ten letters can keep Python's
engine busy for years, and nothing interrupts it in a thread; the limits of a process do. Reads
[patterns, names] as JSON from stdin and writes a line of JSON per pattern: the numbers of the names
whose first match it is, or the reason why it is no regular expression.
"""

import json
import re
import resource
import sys

MEMORY_BYTES = 2**30


def main() -> None:
    """Writes the lines as they are found, so that the last pattern is known if time runs out."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    patterns, names = json.load(sys.stdin)
    waiting = dict(enumerate(names))
    for pattern in patterns:
        sys.stdout.write(json.dumps(_matched(pattern, waiting)) + "\n")
        sys.stdout.flush()


def _matched(pattern: str, waiting: dict[int, str]) -> list[int] | str:
    """Numbers of the names that the pattern fits, which wait for no other then."""
    try:
        # The rule of peft (peft.utils.other.get_pattern_key).
        fits = re.compile(rf"(.*\.)?({pattern})$").match
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    found = [number for number, name in waiting.items() if fits(name)]
    for number in found:
        del waiting[number]
    return found


if __name__ == "__main__":
    main()
