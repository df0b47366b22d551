"""``python -m bench.doctor_probe NAME``: tries a library in a process of its own and prints one line of JSON."""

from __future__ import annotations

import json
import sys

PROBES = ("mindspore", "video")
_CODECS = ("h264", "hevc", "mpeg4", "libx264")


def mindspore() -> dict:
    """Version, the devices that can be selected, a convolution for oneDNN to report on, and the memory counter."""
    import mindspore as ms  # noqa: PLC0415 - each probe loads only what it tries
    import numpy as np  # noqa: PLC0415
    from mindspore import ops  # noqa: PLC0415

    ms.set_device("CPU")
    image = ms.Tensor(np.ones((1, 16, 32, 32), np.float32))
    weight = ms.Tensor(np.ones((16, 16, 3, 3), np.float32))
    ops.conv2d(image, weight).asnumpy()
    counter = int(ms.runtime.max_memory_allocated())
    devices = ["CPU", *(["Ascend"] if _can_select(ms, "Ascend") else [])]
    return {"version": ms.__version__, "devices": devices, "counter_bytes": counter}


def _can_select(ms, device: str) -> bool:
    try:
        ms.set_device(device)
    except (RuntimeError, ValueError) as error:
        print(f"{device}: {error}", file=sys.stderr)
        return False
    return True


def video() -> dict:
    """Versions of the video libraries, why one is missing, and the codecs PyAV was built with."""
    found: dict = {"codecs": {}}
    for name in ("av", "decord"):
        try:
            found[name], found[f"{name}_error"] = __import__(name).__version__, None
        except (ImportError, OSError, RuntimeError) as error:
            found[name], found[f"{name}_error"] = None, f"{type(error).__name__}: {error}"
    if found["av"]:
        import av  # noqa: PLC0415

        found["codecs"] = {codec: codec in av.codecs_available for codec in _CODECS}
    return found


if __name__ == "__main__":
    name = sys.argv[1]
    print(json.dumps({"probe": name, **{"mindspore": mindspore, "video": video}[name]()}), flush=True)
