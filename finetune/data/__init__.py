"""From a folder of images and its table to batches: sources, splits, audit, cache, transforms, datasets.

Nothing is imported here, so that `finetune.data.table` costs pandas and no more.
"""
