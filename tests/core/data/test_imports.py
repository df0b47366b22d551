from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_no_module_here_imports_mindspore_or_anything_heavy():
    names = sorted(path.stem for path in (ROOT / "core" / "data").glob("*.py") if path.stem != "__init__")
    code = f"import sys; [__import__('core.data.' + name) for name in {names}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"mindspore", "av", "decord", "PIL", "transformers", "torch", "pandas"}
    assert not heavy & set(done.stdout.split())
    assert "cache" in names
