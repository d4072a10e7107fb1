"""The studies as a whole, on settings that take seconds."""

import attrs
import numpy as np
import pytest
import torch
from torch.nn import functional

import distilkit as dk
from distilkit.errors import CombinationError, FieldError, RunError
from distilkit.evaluation import score_sets, training_set
from distilkit.evaluation.baselines import CORESETS, coreset, herd
from distilkit.studies.gradients import usual_policies
from distilkit.studies.gradients_layout import VARIABLES
from distilkit.studies.influence import influence
from distilkit.studies.subsets import orders, subset_rows
from distilkit.truncation import Window


def tiny(**changes):
    settings = {
        "data": dk.Digits(),
        "learner": dk.Learner(dk.MLP(hidden=(12,)), dk.Adam(lr=0.01)),
        "truncation": dk.RandomTruncation(horizon=6, window=3),
        "boost": dk.BoostSchedule(blocks=(1, 2), steps=(2, 2)),
        "images": dk.Images(start="real"),
        "outer": dk.Outer(batch_size=64, optimizer=dk.Adam(lr=0.05)),
        "labels": dk.Labels(learn=True),
        "evaluation": dk.Evaluation(seeds=2, steps=(5, 10), baselines=()),
    }
    return dk.Distiller(**(settings | changes))


@pytest.fixture(scope="module")
def pipeline():
    return tiny()


@pytest.fixture(scope="module")
def made(pipeline):
    """A set of three images of each class, in two blocks."""
    return pipeline.distilled(pipeline.template(1))


def test_orders_take_what_they_say(made):
    stream, hard = dk.Stream(0), torch.linspace(0, 1, 30)
    easy = subset_rows(made.classes, 1, orders("easiest", made, 1, stream, hard)[0])
    assert torch.equal(easy, torch.arange(10))
    hardest = subset_rows(made.classes, 1, orders("hardest", made, 1, stream, hard)[0])
    assert hard[hardest].min() > hard[easy].max()
    prefix = subset_rows(made.classes, 1, orders("prefix", made, 1, stream)[0])
    assert (made.block[prefix] == 0).all()
    several = orders("random", made, 3, stream)
    small, large = (subset_rows(made.classes, b, several[1]) for b in (1, 2))
    assert set(small.tolist()) < set(large.tolist())  # nested within a draw
    assert not torch.equal(small, subset_rows(made.classes, 1, several[2]))
    assert made.classes[large].tolist() == torch.arange(10).repeat_interleave(2).tolist()


def test_a_set_does_not_feel_its_neighbours(pipeline, made):
    """Scores are the same whatever is evaluated side by side, and agree with the protocol's own."""
    from distilkit.evaluation import score

    whole, stream = training_set(made, pipeline.bundle), dk.Stream(1)
    parts = (slice(10), slice(10, 20))
    halves = [attrs.evolve(whole, images=whole.images[r], labels=whole.labels[r], classes=whole.classes[r]) for r in parts]
    halves[1] = attrs.evolve(halves[1], classes=halves[0].classes)
    both = score_sets(pipeline.bound, halves, pipeline.bundle, pipeline.evaluation, stream)
    for half, found in zip(halves, both, strict=True):
        (alone,) = score_sets(pipeline.bound, [half], pipeline.bundle, pipeline.evaluation, stream)
        usual = score(pipeline.bound, half, pipeline.bundle, pipeline.evaluation, stream, test=True)
        for other in (alone, usual):
            assert np.allclose(found.test, other.test, atol=0.006)  # two of 359 images: stacked sums are rounded in another order
            assert found.validation.shape == other.validation.shape
            assert found.steps == other.steps


def test_subset_grid(pipeline, made, tmp_path):
    networks = {"narrow": dk.MLP(hidden=(4,)), "wide": dk.MLP(hidden=(32,))}
    grid = dk.subset_grid(made, (1, 3), 3, networks, 2, pipeline=pipeline, out=tmp_path / "grid", together=4)
    assert grid["accuracy"].dims == ("budget", "draw", "network", "seed")
    assert grid["accuracy"].shape == (2, 3, 2, 2)
    assert grid["accuracy"].notnull().all()
    assert set(np.unique(grid["training_steps"])) <= {5, 10}
    assert (grid["taken"].sum("sample") == 10 * grid["budget"]).all()
    spread = grid["accuracy"].std("draw").sel(budget=3)
    assert (spread < 0.02).all()  # the whole set, in three orders
    assert grid["accuracy"].std("draw").sel(budget=1).max() > spread.max()
    memory = dk.subset_grid(made, (1, 3), 3, networks, 2, pipeline=pipeline, together=4)
    assert np.array_equal(grid["accuracy"], memory["accuracy"])
    with pytest.raises(RunError, match="strategy"):
        dk.subset_grid(made, (1, 3), 1, networks, 2, "prefix", pipeline=pipeline, out=tmp_path / "grid", together=4)


def test_subset_grid_of_a_run(tmp_path):
    tree = tiny().run(tmp_path / "run")
    grid = dk.subset_grid(tmp_path / "run", [1, 3], strategy="prefix")
    # The prefixes were tested in the run too, by networks with other random streams.
    assert np.allclose(grid["accuracy"].mean(("draw", "network", "seed")), tree["prefixes"]["accuracy"].mean("seed"), atol=0.25)
    easy = dk.subset_grid(tmp_path / "run", [1], strategy="easiest")
    hardest = dk.subset_grid(tmp_path / "run", [1], strategy="hardest")
    assert easy["difficulty"].equals(hardest["difficulty"])
    means = [float((g["taken"][0, 0] * g["difficulty"]).sum()) for g in (easy, hardest)]
    assert means[0] < means[1]


BAD = {
    "too large": (lambda s, p: dk.subset_grid(s, [4], pipeline=p), CombinationError, "the set has 3"),
    "no pipeline": (lambda s, p: dk.subset_grid(s, [1]), CombinationError, "pipeline="),
    "a misspelt strategy": (lambda s, p: dk.subset_grid(s, [1], strategy="prefxi", pipeline=p), FieldError, 'strategy="prefix"'),
    "draws of one thing": (lambda s, p: dk.subset_grid(s, [1], 2, strategy="prefix", pipeline=p), CombinationError, "draws=1"),
    "no boosting": (
        lambda s, p: dk.intercorrelation_study(attrs.evolve(p, boost=None), "nowhere"),
        CombinationError,
        "no boost schedule",
    ),
    "another optimiser": (
        lambda s, p: dk.gradient_study(p, {"x": dk.evolve(p, learner=dk.evolve(p.learner, optimizer=dk.SGD(lr=0.1)))}),
        CombinationError,
        "'x' differs from the pipeline in its learner",
    ),
    "another width": (
        lambda s, p: dk.gradient_study(p, {"x": dk.evolve(p, growth=dk.Growth(until=(0.5,), batch_sizes=(8,)))}),
        CombinationError,
        "'x' differs from the pipeline in its growth",
    ),
    "two replicates": (lambda s, p: dk.gradient_study(p, replicates=2), CombinationError, "too few"),
    "beyond the run": (lambda s, p: dk.gradient_study(p, outer_steps=[5]), CombinationError, "ends after 4"),
}


@pytest.mark.parametrize(("call", "error", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_said(call, error, words, made, pipeline):
    with pytest.raises(error, match=words):
        call(made, pipeline)


def test_herding_follows_the_mean():
    points = dk.Stream(0).normal(200, 5)
    picked = points[herd(points, 20)]
    random = torch.stack([(points[dk.Stream(i).permutation(200)[:20]].mean(0) - points.mean(0)).norm() for i in range(20)])
    assert (picked.mean(0) - points.mean(0)).norm() < random.min()
    assert len(picked.unique(dim=0)) == 20


@pytest.mark.parametrize("name", CORESETS)
def test_coresets_are_real_images_of_their_class(name, pipeline):
    made, train = coreset(name, pipeline.bundle, 2, 2, dk.Stream(0)), pipeline.bundle.train
    assert made.images.shape == (2, 20, 1, 8, 8)
    for image, label in zip(made.images[1], made.labels[1], strict=True):
        matches = (train.images == image).flatten(1).all(1)
        assert matches.any()
        assert (train.labels[matches] == label.argmax()).all()


@pytest.mark.parametrize("name", CORESETS)
def test_coresets_do_not_see_how_long_an_image_is(name, pipeline):
    """Powers of two, which round nothing: half of the images become nearly empty, and the same ones are chosen."""
    data = pipeline.bundle
    lengths = torch.where(torch.arange(len(data.train)) % 2 == 0, 2.0**-6, 1.0).view(-1, 1, 1, 1)
    scaled = attrs.evolve(data, train=attrs.evolve(data.train, images=data.train.images * lengths))
    one, other = (coreset(name, bundle, 2, 2, dk.Stream(0)).images for bundle in (data, scaled))
    assert torch.equal(functional.normalize(one.flatten(2), dim=2), functional.normalize(other.flatten(2), dim=2))


def test_influence_is_what_is_left_when_samples_go(pipeline, made, tmp_path):
    part = made.subset(made.classes < 2)
    training, protocol, stream = training_set(part, pipeline.bundle), attrs.evolve(pipeline.evaluation, seeds=3), dk.Stream(5)
    found = influence(pipeline, part, stream, evaluation=protocol, together=12, folder=tmp_path, identity={"a": 1})
    rows = [r for r in range(6) if r not in (0, 2)]
    left = attrs.evolve(training, images=training.images[rows], labels=training.labels[rows], classes=training.classes[rows])
    (by_hand,) = score_sets(pipeline.bound, [left], pipeline.bundle, protocol, stream)
    assert np.allclose(found["accuracy"] - found["joint_drop"][0, 2], by_hand.test, atol=0.006)
    pairs = found["interaction"].notnull().all("seed").values
    same_class = part.classes[:, None] == part.classes[None]
    assert np.array_equal(pairs, (same_class & ~torch.eye(6, dtype=torch.bool)).numpy())
    expected = found["joint_drop"][0, 2] - found["drop"][0] - found["drop"][2]
    assert np.allclose(found["interaction"][0, 2], expected)
    assert np.allclose(found["interaction"][0, 2], found["interaction"][2, 0])


@pytest.mark.slow
def test_intercorrelation_study_goes_on_and_is_whole(tmp_path):
    pipeline = tiny()
    tree = dk.intercorrelation_study(pipeline, tmp_path / "study", draws=2, influence_at=1)
    accuracy = tree["sources"]["accuracy"]
    assert accuracy.dims == ("source", "budget", "draw", "seed")
    assert accuracy.sizes["source"] == 6
    assert accuracy.isel(draw=0).notnull().all()
    whole = accuracy.sel(budget=3, draw=0)
    assert np.allclose(whole.sel(source="subset of the large set"), whole.sel(source="distilled directly"), atol=0.02)
    assert np.isnan(accuracy.sel(source="boosted prefix", draw=1)).all()
    assert dk.load(tmp_path / "study" / "direct-3").per_class == 3
    assert dk.open(tmp_path / "study" / "direct-3")["history"].sizes["outer_step"] == 4  # as many as the boosted run has spent
    again = dk.intercorrelation_study(pipeline, tmp_path / "study", draws=2, influence_at=1)
    assert np.array_equal(accuracy, again["sources"]["accuracy"], equal_nan=True)


def test_usual_policies_take_horizon_and_window_from_the_policy():
    assert usual_policies(dk.FullUnroll(8))["tail"] == dk.TailTruncation(8, 4)


def test_other_ways_are_rows_of_the_gradient_study():
    """Each is the meta-gradient of a pipeline that has it, of the same draws; the plain one is the study's own."""
    pipeline = tiny(boost=None, outer=dk.Outer(steps=1, batch_size=64), truncation=dk.FullUnroll(6))
    ends, decay = dk.evolve(pipeline.outer, ends=2), dk.Unroller(dk.ReplayAdjoint(decay=0.9))
    ways = {
        "plain": pipeline,
        "two ends": dk.evolve(pipeline, outer=ends),
        "decay": dk.evolve(pipeline, unroller=decay),
        "two networks": dk.evolve(pipeline, unroller=dk.Unroller(networks_per_step=2)),
        "AT-BPTT": dk.AdaptiveTruncation(6, 3, spread=1),
    }
    study = dk.gradient_study(pipeline, ways, outer_steps=[0], replicates=4)
    assert study["norm"].notnull().all()
    leaves = pipeline.init().leaves
    for name in ("plain", "two ends", "decay", "two networks"):
        way = ways[name]
        for k, norm in enumerate(study["norm"].sel(policy=name).values.flatten()):
            inner = pipeline.stream.fold("gradient study").fold(k).fold("inner").fold(0)
            batch = pipeline.real_batch(inner.fold("batch").permutation(len(pipeline.bundle.train))[:64], inner.fold("augment"))
            found = way.unroller.meta_gradient(pipeline.bound, leaves, Window(0, 6), batch, inner, ends=way.outer.ends)
            assert norm == pytest.approx(float(found.images.norm()), rel=1e-5), name
    assert np.allclose(study["cosine"].sel(policy="plain"), 1)
    assert (study["same_end_cosine"].sel(policy=["two ends", "two networks"]).min("replicate") < 0.99999).all()
    policy, stream = ways["AT-BPTT"], pipeline.stream.fold("gradient study")
    own = stream.fold("probe").fold(0)
    batch = pipeline.real_batch(own.fold("batch").permutation(len(pipeline.bundle.train))[:64], own.fold("augment"))
    probed = policy.observe_probe(policy.init(), pipeline.unroller.probe(pipeline.bound, leaves, 6, batch, own))
    planned = [policy.plan(probed, 0, stream.fold(k).fold("window"))[0] for k in range(4)]
    adaptive = study.sel(policy="AT-BPTT")
    assert adaptive["window_start"].values.flatten().tolist() == [window.start for window in planned]
    assert adaptive["window_stop"].values.flatten().tolist() == [window.stop for window in planned]
    assert planned != [policy.plan(policy.init(), 0, stream.fold(k).fold("window"))[0] for k in range(4)]


def test_gradient_study(tmp_path):
    pipeline = tiny(boost=None, outer=dk.Outer(steps=4, batch_size=64, optimizer=dk.Adam(lr=0.05)))
    optimizers = {"Adam": dk.Adam(lr=0.01), "SGD": dk.SGD(lr=0.1)}
    study = dk.gradient_study(pipeline, optimizers=optimizers, outer_steps=[0, 3], replicates=4, out=tmp_path / "study")
    assert set(study.data_vars) == set(VARIABLES)
    assert study["norm"].dims == ("policy", "optimizer", "outer_step", "replicate")
    assert study["norm"].notnull().all()
    full = study.sel(policy="full unroll")
    assert np.allclose(full["same_end_cosine"], 1)
    assert np.allclose(full["cosine"], 1)
    assert np.allclose(study["norm"] ** 2, np.einsum("...kk->...k", study["inner_product"]))
    tail = study.sel(policy="tail")
    assert (tail["window_start"] == 3).all()
    assert (tail["same_end_cosine"] < 0.9999).all()
    assert np.allclose(tail["outer_loss"], full["outer_loss"])  # the same networks, batches and end
    assert (study["peak_memory"] > 0).all()
    # The set at an outer step, and a replicate's gradient through the window, are what they are said to be.
    state = pipeline.init()
    for _ in range(3):
        state, _ = pipeline.step(state)
    stream = pipeline.stream.fold("gradient study").fold(2)
    inner = stream.fold("inner").fold(3)
    batch = pipeline.real_batch(inner.fold("batch").permutation(len(pipeline.bundle.train))[:64], inner.fold("augment"))
    gradient = pipeline.unroller.meta_gradient(pipeline.bound, state.leaves, Window(3, 6), batch, inner).images
    assert float(study["norm"].sel(policy="tail", optimizer="Adam", outer_step=3)[2]) == pytest.approx(float(gradient.norm()), rel=1e-5)
    again = dk.gradient_study(pipeline, optimizers=optimizers, outer_steps=[0, 3], replicates=4, out=tmp_path / "study")
    assert study.identical(again)
