"""How fast this machine is: ours and what else there is take turns in one run; figures as data, tables, plots.

``suite.cases`` lists the races, ``run.run`` runs one, ``record`` keeps figures, ``tables`` and ``plots`` show them,
``compare`` tells two records apart. Nothing is imported here: pytest loads the plugin at every start.
"""
