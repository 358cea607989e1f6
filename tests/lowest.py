"""Print the lowest version of every dependency in pyproject.toml, as constraints for pip."""

import re
import tomllib
from pathlib import Path

BOUND = re.compile(r"([\w-]+)(?:\[[^\]]*\])?>=([\d.]+)")

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for line in project["dependencies"] + extras["test"] + extras["gpu"] + extras["wandb-reports"]:
    if found := BOUND.match(line):
        print("{}=={}".format(*found.groups()))
