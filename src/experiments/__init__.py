"""Campaigns of runs, and what is made of their results: tables, figures, reports."""
