"""Tickets: drawing a channel subnetwork from a model in training, and cutting the model down to it."""

from lowprec_eb.tickets.budgets import Budget, BudgetError, BudgetSearch, Drawn, draw
from lowprec_eb.tickets.compaction import Compaction, plan_compaction
from lowprec_eb.tickets.detectors import DETECTORS, Detector, TicketSettings
from lowprec_eb.tickets.drawn import DrawnTicket
from lowprec_eb.tickets.early_bird import EarlyBird, EarlyBirds
from lowprec_eb.tickets.equality import compact
from lowprec_eb.tickets.groups import channel_groups
from lowprec_eb.tickets.history import Replay, ScoreHistory, replay
from lowprec_eb.tickets.importance import batch_norms, gamma_scores
from lowprec_eb.tickets.masks import NaNScores, check_finite, keep_largest, keep_random, keep_uniform, mask_distance
from lowprec_eb.tickets.members import ChannelGroup, ChannelGroups, Member
from lowprec_eb.tickets.score_settings import ScoreSettings, scoring
from lowprec_eb.tickets.scores import SCORES, scorer
from lowprec_eb.tickets.shrinking import Shrinking, macs_per_channel
from lowprec_eb.tickets.ticket import Ticket, draw_by_gamma

__all__ = [
    "DETECTORS",
    "SCORES",
    "Budget",
    "BudgetError",
    "BudgetSearch",
    "ChannelGroup",
    "ChannelGroups",
    "Compaction",
    "Detector",
    "Drawn",
    "DrawnTicket",
    "EarlyBird",
    "EarlyBirds",
    "Member",
    "NaNScores",
    "Replay",
    "ScoreHistory",
    "ScoreSettings",
    "Shrinking",
    "Ticket",
    "TicketSettings",
    "batch_norms",
    "channel_groups",
    "check_finite",
    "compact",
    "draw",
    "draw_by_gamma",
    "gamma_scores",
    "keep_largest",
    "keep_random",
    "keep_uniform",
    "macs_per_channel",
    "mask_distance",
    "plan_compaction",
    "replay",
    "scorer",
    "scoring",
]
