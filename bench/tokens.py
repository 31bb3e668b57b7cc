#!/usr/bin/env python3
"""Tokens (characters / 4) that an agent reads to start, query and stop a service on Docker.

Baseline: NVIDIA's TAO skill bank, `tao-run-inference-service` 0.1.0 and its Docker platform skill, counted alike.
"""

from __future__ import annotations

from pathlib import Path

SKILL = Path(__file__).resolve().parent.parent
PUBLISHED = {
    "SKILL.md": 4668,
    "references/service.yaml": 2842,
    "references/code-templates.yaml": 4294,
    "references/request.yaml": 2907,
    "Docker platform skill": 4990,
}
OURS = ("SKILL.md", "platform/local-docker/SKILL.md")


def tokens(file: Path) -> int:
    """A page's length in tokens, by the rule of thumb of four characters each."""
    return round(len(file.read_text(encoding="utf-8")) / 4)


def main() -> None:
    """Count and print."""
    print("published 0.1.0")
    for page, count in PUBLISHED.items():
        print(f"  {page:<34} {count:6}")
    published = sum(PUBLISHED.values())
    print(f"  {'all that must be read':<34} {published:6}")
    print("this skill")
    counts = {page: tokens(SKILL / page) for page in OURS}
    for page, count in counts.items():
        print(f"  {page:<34} {count:6}")
    ours = sum(counts.values())
    print(f"  {'all that must be read':<34} {ours:6}")
    print(f"SKILL.md: {PUBLISHED['SKILL.md'] / counts['SKILL.md']:.1f} x shorter than the published one")
    print(f"start + ask + stop on Docker: {published / ours:.1f} x fewer tokens to read")


if __name__ == "__main__":
    main()
