"""Tasks: what differs between classifying images and any other thing that a network is trained for.

Everything else is shared: plan, rates, seeds, ranks, run folder, jobs. `finetune.steps.task.Task` is the contract; a
task is a class made of the settings, which conf/task/NAME.yaml names, and its answers (`finetune.evaluation.answers`)
travel in the model file. EXTENDING.md shows how to add one.
"""
