"""Who trains: each engine turns a run into an Azure ML job and tells how it went.

command.py    this project's training code as a command job on a cluster
pipeline.py   the registry's chat_completion_pipeline, with pipeline_inputs.py
service.py    fine-tuning as a service
jobs.py       what is the same for every job: submitted once, observed, stopped, its log
clusters.py   the cluster to train on: found or made; machines.py: what Azure's machines can do, and the quota
bases.py      the model to start from, and the one to be measured against
collected.py  what a job of our own training has measured and written; run_metrics.py: what any job told MLflow
tags.py       the lineage of a job
"""

from importlib import import_module
from typing import Any, Protocol, cast

from ..observation import JobSeen
from ..recipe import Recipe
from ..runs import Run


class Engine(Protocol):
    """What every engine does. All of it may be repeated; the job is called as the run says (``run.job``)."""

    def check(self, run: Run, recipe: Recipe) -> None:
        """Look, before anything is submitted, whether this engine can do what the recipe asks, here and now.

        Raises UserError with a sentence that says what it cannot do and what to change.
        """

    def submit(self, run: Run, recipe: Recipe) -> str:
        """Submit the job and return its page in the studio. A job that exists already is left alone.

        Raises TransientError while something that it needs is still being made, and StepError when that has failed.
        """

    def observe(self, run: Run) -> JobSeen | None:
        """The job's status in Azure's words and, when it failed, one sentence and the last lines of its log."""

    def stopped(self, run: Run) -> bool:
        """Ask Azure ML to stop the job; True once it has ended (or never was)."""

    def results(self, run: Run) -> dict[str, Any]:
        """What metrics.json has (docs/interfaces.md), as far as the engine knows it, for the run's numbers.

        Besides that ``engine``, and ``model_uri``: what to register, ``azureml://jobs/<job>/outputs/<output>``.
        Adds to the run's links. Raises StepError when the job left nothing that can be used.
        """


def engine(recipe: Recipe) -> Engine:
    """The engine that the recipe names; imported here, so that nobody pays for the others."""
    return cast(Engine, import_module(f"{__name__}.{recipe.engine}"))
