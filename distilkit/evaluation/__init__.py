"""Judging distilled sets: the protocol, the baselines, and training many networks at once."""

from distilkit.evaluation.baselines import TrainingSet
from distilkit.evaluation.protocol import Evaluation, Score, baseline_scores, score, training_set

__all__ = ["Evaluation", "Score", "TrainingSet", "baseline_scores", "score", "training_set"]
