"""How the networks of the tiny preset are made: data, labels, four trainings, export. See README.md."""
