"""Planning: what whole pipelines would cost, before anything is trained."""

from lowprec_eb.planning.plan import make_plans
from lowprec_eb.planning.result import Plan, PlannedArm, PlannedPhase
from lowprec_eb.planning.settings import PlanArm, PlanSettings, PlanTicket, load_plan

__all__ = ["Plan", "PlanArm", "PlanSettings", "PlanTicket", "PlannedArm", "PlannedPhase", "load_plan", "make_plans"]
