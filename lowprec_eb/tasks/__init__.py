"""What is trained: the data, the loss and the metric, behind one small protocol."""

from lowprec_eb.tasks.base import Batch, Task
from lowprec_eb.tasks.vision import TaskSettings, VisionTask, make_task, prepare_data

__all__ = ["Batch", "Task", "TaskSettings", "VisionTask", "make_task", "prepare_data"]
