"""Campaigns: everything worth measuring on a GPU, in order of worth, within a budget of time, and resumable.

A table (h200.yaml) says what the steps are; each runs as a process of its own, and the state is on disk after each.
"""

from g4lab.campaign.planner import Plan, plan
from g4lab.campaign.runner import new_folder, reopen, run
from g4lab.campaign.state import CampaignState, StepRun
from g4lab.campaign.steps import Step, Table, load_table, select

__all__ = [
    "CampaignState", "Plan", "Step", "StepRun", "Table", "load_table", "new_folder", "plan", "reopen", "run", "select",
]  # fmt: skip
