"""What chaos.py and soak.py do: kill and resume trainings (chaos), and watch an hour of training (soak).

Not here: how a run stops and resumes, which is in ``introspection_lit/training``.
"""
