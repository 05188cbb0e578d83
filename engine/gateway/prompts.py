"""A file of prompts: text with one a line, or JSONL with the key `prompt`."""

import json
from pathlib import Path

from moesim.errors import EngineError

JSONL = ".jsonl"


def read_prompts(path: Path) -> list[str]:
    """Return the prompts of a file, leaving out empty lines; EngineError names the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as wrong:
        raise EngineError(f"{path}: not readable as text ({wrong})") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise EngineError(f"{path}: has no prompt; give one a line")
    if path.suffix != JSONL:
        return [line for _, line in numbered]
    return [_prompt(path, number, line) for number, line in numbered]


def _prompt(path: Path, number: int, line: str) -> str:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise EngineError(f"{path}: line {number}: not JSON; give one object a line") from None
    prompt = content.get("prompt") if isinstance(content, dict) else None
    if not isinstance(prompt, str):
        raise EngineError(f'{path}: line {number}: prompt: not a text; give {{"prompt": ...}}')
    return prompt
