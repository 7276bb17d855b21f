"""What a stage will cost, before it is trained."""

from __future__ import annotations

import copy

from energy_models import OpCounts
from lowprec_eb.batch_counts import BatchCounts
from lowprec_eb.costs import epoch_costs
from lowprec_eb.lowering import lower
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.precision import Precision
from lowprec_eb.stage_average import stage_average
from lowprec_eb.stage_data import Stage, Start
from lowprec_eb.tasks import Task


class Forecast:
    """Counts an epoch of ``stage``, which begins with ``start``, once; a search is taken to last to its deadline.

    ``counts``: of other stages, whose training has the same optimizer.
    """

    def __init__(
        self, stage: Stage, start: Start, recipe: Precision, task: Task, counts: BatchCounts | None = None
    ) -> None:
        self.start, self.recipe, self.task = start, recipe, task
        self.model = copy.deepcopy(start.model)
        lower(self.model, recipe)
        optimizer = LowPrecisionOptimizer(stage.training.optimizer(self.model), recipe, stage.seed)
        averaging = stage_average(self.model, stage.training, stage.epochs, recipe, task, stage.seed)
        self.costs = epoch_costs(
            self.model,
            optimizer,
            task,
            sparsity=stage.sparsity,
            detector=stage.detector,
            stability=stage.training.stability,
            device=stage.device,
            average=None if averaging is None else averaging.average,
            counts=counts,
        )

    def by_phase(self, stage: Stage) -> dict[str, OpCounts]:
        """The costs of ``stage``: the one that was counted, or one that differs from it in the schedule alone.

        Raises:
            ValueError: its weights are to be averaged, and it is too short for that.
        """
        costs, epochs = self.costs, len(stage.epochs)
        found = {stage.phase: costs.train * epochs, "eval": costs.validate * epochs}
        averaging = stage_average(self.model, stage.training, stage.epochs, self.recipe, self.task, stage.seed)
        if averaging is not None and costs.average is not None:
            updates = sum(averaging.updates(epoch) for epoch in stage.epochs)
            found["average"] = costs.average.update * updates + costs.average.statistics + costs.average.validate
            found["eval"] += costs.average.test
        elif stage.detector is None:
            found["eval"] += costs.test
        if stage.detector is not None:
            looks = stage.detector.looks(epochs, sum(self.task.batch_sizes("train").values()))
            found["detect"] = costs.detect * looks
        return found | {phase: of.costs for phase, of in self.start.expenses.items()}
