"""The paper's tables and figures, made by `src/reproduce.py`; not part of the installed package.

What a table compares, its words and the paper's values are data: `tables/*.yaml`, read by reader.py
and run by tables.py. Tables 4 to 7 are made in StarCraft II or in SMAX: starcraft.py, and timing.py
for Table 7. What needs code of its own has a file each: main_job.py, figure3.py, figure5.py,
paths.py, bridge.py. commands.py lists them all.
"""
