"""Has the name of a module of the project, and nothing in it that the project uses."""
