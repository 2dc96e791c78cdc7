"""The page at the end of a run: one self-contained ``report.html`` that opens offline."""

from pipeline.report.data import PoolTime, ReportData, ShownTrajectory
from pipeline.report.page import render_report, write_report
from pipeline.report.selection import Chosen, choose_trajectories

__all__ = [
    "Chosen",
    "PoolTime",
    "ReportData",
    "ShownTrajectory",
    "choose_trajectories",
    "render_report",
    "write_report",
]
