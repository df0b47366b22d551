"""The tests below import decord, and MindSpore aborts the process when it is imported after decord 0.6."""

from __future__ import annotations

import mindspore  # noqa: F401  before decord, see tests/conftest.py
