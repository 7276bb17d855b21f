"""What is trained: the data, the loss and the metric, behind one small protocol."""

from lowprec_eb.tasks.base import Batch, Task
from lowprec_eb.tasks.sizes import DataSize, SizedTask, sized_task
from lowprec_eb.tasks.vision import TaskSettings, VisionTask, make_task, prepare_data

__all__ = [
    "Batch",
    "DataSize",
    "SizedTask",
    "Task",
    "TaskSettings",
    "VisionTask",
    "make_task",
    "prepare_data",
    "sized_task",
]
