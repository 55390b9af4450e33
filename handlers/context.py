"""What handlers work with."""

from __future__ import annotations

from dataclasses import dataclass

from bot.approval_desk import ApprovalDesk
from bot.conductor import Conductor
from bot.config_check import ConfigCheck
from bot.dialogue import Dialogue
from bot.final_check import FinalCheck
from bot.fixer import Fixer
from bot.installs import Installs


@dataclass(frozen=True, kw_only=True)
class Bot:
    """The parts of the bot that act on events, one for each concern."""

    conductor: Conductor  # commands, labels, buttons: jobs
    desk: ApprovalDesk  # what people are asked to approve
    final: FinalCheck  # whether a pull request as a whole is approved
    dialogue: Dialogue  # words for a job that is there: reviews, tells, decisions
    config_check: ConfigCheck  # the check run on a configuration that a pull request brings along
    fixer: Fixer  # failed checks of our own commits
    installs: Installs  # where the App is installed
