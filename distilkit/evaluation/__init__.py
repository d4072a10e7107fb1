"""Judging distilled sets: the protocol, the baselines, DD-Ranking's scores, and training many networks at once."""

from distilkit.evaluation.measuring import baseline_set, measure, require_feasible, selection_split, training_set
from distilkit.evaluation.protocol import Evaluation
from distilkit.evaluation.ranking import augmentation_robust_score, label_robust_score, rank
from distilkit.evaluation.scoring import PartialScore, Score, score, score_sets
from distilkit.evaluation.training import TrainingSet, accuracy, train

__all__ = [
    "Evaluation",
    "PartialScore",
    "Score",
    "TrainingSet",
    "accuracy",
    "augmentation_robust_score",
    "baseline_set",
    "label_robust_score",
    "measure",
    "rank",
    "require_feasible",
    "score",
    "score_sets",
    "selection_split",
    "train",
    "training_set",
]
