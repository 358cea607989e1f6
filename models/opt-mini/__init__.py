# ruff: noqa: N999 - the folder has the name of the model; it is installed as shadow.opt_mini
