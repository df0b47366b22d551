"""The files in docs/ci: the script with a stand-in for cogbench, the workflow as YAML with recipes that exist."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

_ROOT = Path(__file__).resolve().parents[2]
_CI = _ROOT / "docs" / "ci"
# Ends with the number in the recipe's name; a name with two numbers ends with the second when it is asked again.
_STAND_IN = """#!/bin/bash
echo "$@" >> calls.txt
name=$(basename "$2" .yaml)
[ -e "$name.asked" ] && name=${name#*-}
touch "$(basename "$2" .yaml).asked"
exit "${name%%-*}"
"""


def _pool(folder: Path, *recipes: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "stand-in").write_text(_STAND_IN)
    (folder / "stand-in").chmod(0o755)
    env = os.environ | {"COGBENCH": "./stand-in", "COGBENCH_LOCK": str(folder / "lock")} | variables
    return subprocess.run(
        [str(_CI / "gate_pool.sh"), "results", *recipes],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("recipes", "code"),
    [
        (["0.yaml"], 0),
        (["0.yaml", "1.yaml"], 1),
        (["1.yaml", "4.yaml", "3.yaml"], 4),
        (["3.yaml", "0.yaml"], 3),
        (["5-5.yaml", "3.yaml"], 3),
        (["5-0.yaml"], 0),
        (["5-1.yaml"], 1),
        (["2.yaml", "0.yaml"], 2),
        (["130.yaml"], 130),
        ([], 2),
    ],
)
def test_the_pool_script_ends_with_the_gravest_code_and_asks_unsteady_gates_twice(tmp_path, recipes, code):
    done = _pool(tmp_path, *recipes)
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls.txt").read_text().splitlines() if recipes else []
    assert len(calls) == len(recipes) + sum(name.startswith("5") for name in recipes)
    assert all(
        re.fullmatch(r"gate \S+ --runs 3 --out results/\S+/runs-[12] --junit results/\S+\.xml", c) for c in calls
    )


def test_the_pool_script_waits_for_the_lock_and_gives_up(tmp_path):
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = _pool(tmp_path, "0.yaml", COGBENCH_LOCK_SECONDS="0")
    assert done.returncode == 4
    assert "another gate holds the cards" in done.stderr
    assert not (tmp_path / "calls.txt").exists()


@pytest.mark.parametrize("name", ["gate_pool.sh", "nightly.sh"])
def test_scripts_are_valid_bash_and_may_be_executed(name):
    assert subprocess.run(["bash", "-n", str(_CI / name)], check=False).returncode == 0
    assert os.access(_CI / name, os.X_OK)


def test_the_workflow_and_the_scripts_name_recipes_and_options_that_exist(capsys):
    from bench import cli

    workflow = YAML(typ="safe").load((_CI / "github-actions.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert len(workflow["jobs"]) == 2
    assert all(("run" in step) != ("uses" in step) for step in steps)
    text = "".join(path.read_text(encoding="utf-8") for path in _CI.iterdir())
    named = set(re.findall(r"recipes/[\w/]+\.yaml", text))
    assert named
    assert [name for name in named if not (_ROOT / name).is_file()] == []
    with pytest.raises(SystemExit):
        cli.main(["gate", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    used = {
        o
        for line in re.findall(r"cogbench\"? gate[^\n|]*(?:\\\n[^\n|]*)*", text)
        for o in re.findall(r"--[a-z-]+", line)
    }
    assert used - options == set()
