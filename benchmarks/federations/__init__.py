"""One federated job, done by each framework in a script of its own (`digits_job.py` says what the job is).

The scripts run alone in the environment of their framework, so they import each other as top-level modules and nothing
of FedHybrid, but for `ours.py`. `commands.py` and `outcome.py` are for `benchmarks/engine.py`.
"""
