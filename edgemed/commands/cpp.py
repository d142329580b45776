"""`edgemed cmake-dir`."""

from __future__ import annotations

from pathlib import Path

from edgemed import display


def cmake_dir() -> None:
    """Print the folder of the C++ library. cmake -S "$(edgemed cmake-dir)" -B build && cmake --build build"""
    display.say(str(Path(__file__).parents[1] / "cpp"))
