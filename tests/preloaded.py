"""What the process that scripts are forked from has done before: seconds of each of them."""
# ruff: noqa: F401

import lm_eval.evaluator
import shadow.sweeps

import shadow.jobs.fitting
import shadow.jobs.prepared
import shadow.jobs.run
import shadow.plans.selection
from shadow.data.tasks import task_manager

task_manager()
