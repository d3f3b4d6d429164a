"""Batch runs of notebooks: checked before they start, each in a child process, resumable after a kill."""

from g4lab.batch.scheduler import cells, new_folder, prepare, reopen, run
from g4lab.batch.state import Entry, RunState, load_state, newest_run

__all__ = ["Entry", "RunState", "cells", "load_state", "new_folder", "newest_run", "prepare", "reopen", "run"]
