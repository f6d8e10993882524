"""SLiMe as a Lightning module, on a tiny Stable Diffusion with random weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slime_bench.config.read import read
from slime_bench.errors import ConfigError
from slime_bench.methods.base import SegmentationMethod, label_maps
from slime_bench.methods.slime.config import LossWeights, SlimeConfig, Start, check_settings
from slime_bench.methods.slime.method import Slime
from tests.fixtures.rounding import TINY, rounding, same

CLASSES = ["background", "wheel", "window"]
SIZE = 64


@pytest.fixture
def make(tiny_backbone: Any, slime_code: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """make(seed=0, classes=..., protocol={...}, **settings) -> a Slime whose logged terms are kept in `logged`."""

    def build(
        seed: int = 0, classes: Sequence[str] = CLASSES, protocol: Mapping[str, Any] | None = None, **settings: Any
    ) -> Slime:
        config = SlimeConfig(**{"train_map_size": 16, **settings})
        # With random weights no word reaches the gate of trained ones.
        method = Slime(
            config, replace(slime_code, **{"token_gate": 0.0, **(protocol or {})}), tiny_backbone, classes, seed
        )
        logged: dict[str, float] = {}
        monkeypatch.setattr(method, "log_dict", lambda values, **_: logged.update(values), raising=False)
        method.logged = logged  # type: ignore[assignment]
        return method

    return build


def batch(count: int = 2, epoch: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    label = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    label[:, 8:32, 8:40], label[:, 40:56, 20:60], label[:, :4] = 1, 2, 255
    ids = [f"picture-{index}" for index in range(count)]
    epochs = torch.full((count,), epoch)
    return {"image": torch.rand(count, 3, SIZE, SIZE, generator=draw), "label": label, "id": ids, "epoch": epochs}


class Calls:
    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        self.handle = module.register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


def calls_of_whole_passes(method: Slime, function: Any) -> int:
    """How often the U-Net ran to its end."""
    calls = Calls(method.backbone.unet.conv_out)
    try:
        function()
    finally:
        calls.handle.remove()
    return calls.count


class TestTraining:
    def test_only_the_embeddings_are_trained(self, make: Any) -> None:
        method = make()
        assert [name for name, value in method.named_parameters() if value.requires_grad] == ["embeddings"]
        before = copy.deepcopy(dict(method.backbone.named_parameters()))
        optimiser = method.configure_optimizers()
        assert [id(p) for group in optimiser.param_groups for p in group["params"]] == [id(method.embeddings)]
        loss = method.training_step(batch(), 0)
        loss.backward()
        assert method.embeddings.grad.abs().amax(1).min() > 0  # every class
        assert all(value.grad is None for value in method.backbone.parameters())
        optimiser.step()
        assert all(torch.equal(value, before[name]) for name, value in method.backbone.named_parameters())

    def test_first_token_and_tail_stay(self, make: Any) -> None:
        method = make()
        before = method.text().detach().clone()
        optimiser = method.configure_optimizers()
        method.training_step(batch(), 0).backward()
        optimiser.step()
        after = method.text().detach()
        assert after.shape == (1, 77, 32)
        assert torch.equal(after[:, 0], before[:, 0]) and torch.equal(after[:, 3:], before[:, 3:])
        assert (after[:, 1:3] != before[:, 1:3]).any(-1).all()

    def test_terms_are_weighed_and_logged(self, make: Any) -> None:
        method = make(loss_weights=LossWeights(0.7, 0.01))
        loss = method.training_step(batch(), 0)
        logged = method.logged
        terms = {"cross_entropy", "was", "diffusion", "loss", "t", "miou"}
        assert set(logged) == {f"train/{name}" for name in terms}
        expected = logged["train/cross_entropy"] + 0.7 * logged["train/was"] + 0.01 * logged["train/diffusion"]
        torch.testing.assert_close(loss.detach(), expected)
        assert not any(value.requires_grad for value in logged.values())

    def test_optimisation_lowers_the_loss(self, make: Any) -> None:
        method = make(lr=0.05, loss_weights=LossWeights(beta=0.0))
        optimiser, losses = method.configure_optimizers(), []
        for _ in range(6):
            loss = method.training_step(batch(), 0)  # the same epoch: the same timestep and noise
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0] - 0.01

    @pytest.mark.parametrize(
        ("settings", "protocol", "passes"),
        [({"loss_weights": LossWeights(beta=0.0)}, {}, 0), ({}, {}, 2), ({}, {"diffusion_loss": "plain"}, 1)],
        ids=["no diffusion loss", "guided", "plain"],
    )
    def test_noise_is_predicted_only_where_it_is_used(
        self, make: Any, settings: dict[str, Any], protocol: dict[str, Any], passes: int
    ) -> None:
        method = make(protocol=protocol, **settings)
        assert calls_of_whole_passes(method, lambda: method.training_step(batch(), 0)) == passes
        assert ("train/diffusion" in method.logged) == (passes > 0)

    def test_self_attention_is_left_out_where_it_has_no_weight(self, make: Any) -> None:
        method = make(loss_weights=LossWeights(0.0, 0.0))
        calls = Calls(method.backbone.unet.up_blocks[3])
        method.training_step(batch(), 0)
        calls.handle.remove()
        assert calls.count == 0 and "train/was" not in method.logged

    @pytest.mark.parametrize(
        "protocol",
        [{"ce_input": "probabilities"}, {"ce_weights": "all"}, {"was_loss": "sum"}, {"sample_latents": False}],
    )
    def test_every_switch_of_training_changes_the_loss(self, make: Any, protocol: dict[str, Any]) -> None:
        usual, other = (make(protocol=switches).training_step(batch(), 0).item() for switches in ({}, protocol))
        assert abs(usual - other) > 1e-6

    def test_draws_depend_on_seed_image_and_epoch_only(self, make: Any) -> None:
        method, again, other = (make(seed=seed, loss_weights=LossWeights(beta=0.0)) for seed in (0, 0, 1))
        first = method.training_step(batch(), 0)
        assert torch.equal(first, again.training_step(batch(), 0))
        assert first != other.training_step(batch(), 0)
        assert first != method.training_step(batch(epoch=1), 0)
        assert torch.equal(first, method.training_step(batch(), 0))

    def test_timesteps_include_both_ends(self, make: Any) -> None:
        method = make(t_opt=[5, 8])
        drawn = method.timesteps([("picture", epoch) for epoch in range(200)])
        assert drawn.dtype == torch.long and set(drawn.tolist()) == {5, 6, 7, 8}


class TestStart:
    def test_words(self, make: Any, tiny_backbone: Any) -> None:
        expected = tiny_backbone.embed("wheel wheel wheel")[0, 1:3]
        assert torch.equal(make(start=Start(word="wheel")).embeddings.detach(), expected)

    def test_empty_prompt(self, make: Any, tiny_backbone: Any) -> None:
        method = make(start=Start(word=""))
        assert torch.equal(method.text().detach(), tiny_backbone.embed(""))

    def test_class_names_of_several_tokens_start_from_their_mean(self, make: Any, tiny_backbone: Any) -> None:
        method = make(start=Start("class_names"), classes=["background", "wheel", "neck+torso", "tail"])
        pieces = len(tiny_backbone.tokenizer.tokenize("neck+torso"))
        text = tiny_backbone.embed("wheel neck+torso tail")[0]
        assert pieces > 1
        torch.testing.assert_close(method.embeddings[0].detach(), text[1])
        torch.testing.assert_close(method.embeddings[1].detach(), text[2 : 2 + pieces].mean(0))
        torch.testing.assert_close(method.embeddings[2].detach(), text[2 + pieces])

    def test_random_depends_on_the_seed_alone(self, make: Any) -> None:
        one, same, other = (make(start=Start("random"), seed=seed).embeddings.detach() for seed in (0, 0, 1))
        assert torch.equal(one, same) and not torch.equal(one, other)
        assert not torch.equal(one, make().embeddings.detach())


class TestBadSettings:
    @pytest.mark.parametrize("t_opt", [[], [5], [9, 5], [-1, 5], [0, 1000], [1, 2, 3]])
    def test_training_timesteps(self, make: Any, t_opt: list[int]) -> None:
        with pytest.raises(ConfigError, match=r"method\.t_opt"):
            make(t_opt=read(SlimeConfig, {"t_opt": t_opt}, "method").t_opt)

    def test_test_timestep(self, make: Any) -> None:
        with pytest.raises(ConfigError, match=r"method\.t_test"):
            make(t_test=1000)

    def test_more_classes_than_tokens(self, make: Any) -> None:
        names = ["background", *(f"part{index}" for index in range(77))]
        with pytest.raises(ConfigError, match=r"data\.classes"):
            make(classes=names)
        assert make(classes=names[:77]).embeddings.shape == (76, 32)

    @pytest.mark.parametrize("half", [{"patches_per_side": 2}])
    def test_half_described_patches(self, make: Any, half: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match=r"method\.patch_size"):
            make(**half)

    def test_a_patch_larger_than_the_image(self, make: Any) -> None:
        with pytest.raises(ConfigError, match="larger than the image"):
            make(patch_size=SIZE + 1, patches_per_side=2).scores(batch()["image"], ["a", "b"])

    def test_patches_that_leave_gaps(self) -> None:
        config = SlimeConfig(patch_size=20, patches_per_side=2)
        with pytest.raises(ConfigError, match="gaps"):
            check_settings(config, CLASSES, 77, 1000, SIZE)

    def test_one_patch_of_the_whole_image(self, make: Any) -> None:
        images, ids = batch()["image"], ["a", "b"]
        whole = make(patch_size=SIZE, patches_per_side=1).scores(images, ids)
        assert torch.equal(whole, make().scores(images, ids))

    @pytest.mark.parametrize("start", [Start("file"), Start("words", path="somewhere")])
    def test_half_described_start(self, make: Any, start: Start) -> None:
        with pytest.raises(ConfigError, match=r"method\.start\.path"):
            make(start=start)

    def test_class_names_that_do_not_fit_into_the_prompt(self, make: Any) -> None:
        names = ["background", *(f"neck+torso{index}" for index in range(60))]
        with pytest.raises(ConfigError, match=r"method\.start"):
            make(start=Start("class_names"), classes=names)


class TestScores:
    def test_shape_and_range(self, make: Any) -> None:
        method, images = make(), batch()["image"]
        found = method.scores(images, ["a", "b"])
        assert found.shape == (2, 3, SIZE, SIZE) and found.isfinite().all() and not found.requires_grad
        assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6
        predicted = method.predict(images, ["a", "b"])
        assert predicted.shape == (2, SIZE, SIZE) and torch.equal(predicted, found.argmax(1))

    @pytest.mark.parametrize("patches", [{}, {"patch_size": 48, "patches_per_side": 2}])
    def test_neither_batch_nor_order_matters(self, make: Any, patches: dict[str, int]) -> None:
        method, ids = make(**patches), ["a", "b", "c"]
        images = batch(3)["image"]
        together = method.scores(images, ids)
        assert together.abs().amax((1, 2, 3)).min() > 0.01
        order = [2, 0, 1]
        shuffled = method.scores(images[order], [ids[index] for index in order])
        for place, index in enumerate(order):
            same(shuffled[place], together[index], **TINY, magnitude=1.0)
        for index, name in enumerate(ids):
            same(method.scores(images[index : index + 1], [name])[0], together[index], **TINY, magnitude=1.0)
        renamed = method.scores(images, ["x", "y", "z"])
        assert (renamed - together).abs().max() > 10 * rounding(1.0, **TINY)  # the noise is keyed by the name

    def test_maps_of_cross_attention_alone(self, make: Any) -> None:
        images = batch()["image"]
        was, cross = (make(maps=kind).scores(images, ["a", "b"]) for kind in ("was", "cross"))
        assert was.shape == cross.shape and not torch.allclose(was, cross)

    def test_an_image_of_another_size_and_form(self, make: Any) -> None:
        assert make().scores(torch.rand(1, 3, 40, 56), ["a"]).shape == (1, 3, 40, 56)

    def test_a_gate_that_none_reaches_leaves_background(self, make: Any) -> None:
        method = make(protocol={"token_gate": 1.1})
        assert method.scores(batch()["image"], ["a", "b"]).abs().max() == 0
        assert method.predict(batch()["image"], ["a", "b"]).max() == 0

    def test_the_pass_ends_with_the_last_layer(self, make: Any) -> None:
        method = make()
        assert calls_of_whole_passes(method, lambda: method.scores(batch()["image"], ["a", "b"])) == 0

    def test_bgr_turns_the_colours_round(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[torch.Tensor] = []
        for order in ("rgb", "bgr"):
            method = make(protocol={"channel_order": order})
            encode = method.backbone.encode
            with monkeypatch.context() as patch:
                patch.setattr(
                    method.backbone,
                    "encode",
                    lambda images, noise, real=encode, **rest: (seen.append(images), real(images, noise, **rest))[1],
                )
                method.scores(batch()["image"], ["a", "b"])
                method.training_step(batch(), 0)
        assert torch.equal(seen[0], batch()["image"]) and torch.equal(seen[1], batch()["image"])
        assert torch.equal(seen[2], seen[0].flip(1)) and torch.equal(seen[3], seen[1].flip(1))


class TestSwitchesOfTheTestSide:
    """Those of the training side: `test_every_switch_of_training_changes_the_loss`."""

    def scores(self, make: Any, images: torch.Tensor, **protocol: Any) -> torch.Tensor:
        return make(protocol=protocol).scores(images, [str(index) for index in range(len(images))])

    @pytest.mark.parametrize(
        "protocol",
        [
            {"halves": "both"},
            {"test_softmax": "classes"},
            {"test_softmax": "as_trained"},
            {"token_gate": 1.0},
            {"zero_below_mean": False},
            {"affine_rescale": False},
            {"sample_latents": False},
            {"test_noise": "shared"},
        ],
    )
    def test_every_switch_changes_the_maps(self, make: Any, protocol: dict[str, Any]) -> None:
        images = batch()["image"]
        assert (self.scores(make, images) - self.scores(make, images, **protocol)).abs().max() > 1e-5

    def test_both_halves_are_the_mean_of_two_passes(self, make: Any) -> None:
        """With the empty prompt in the place of the classes both halves are one and the same."""
        images = batch()["image"]
        one, both = (make(protocol={"halves": halves}, start=Start(word="")) for halves in ("conditional", "both"))
        same(both.scores(images, ["a", "b"]), one.scores(images, ["a", "b"]), **TINY, magnitude=1.0)
        losses = [method.training_step(batch(), 0) for method in (one, both)]
        torch.testing.assert_close(losses[0], losses[1])
        losses[1].backward()
        assert both.embeddings.grad.abs().amax(1).min() > 0

    def test_shared_noise_is_that_of_every_image(self, make: Any) -> None:
        image = batch()["image"][:1]
        twice, names = torch.cat([image, image]), ["a", "b"]
        shared = make(protocol={"test_noise": "shared"}).scores(twice, names)
        torch.testing.assert_close(shared[0], shared[1])
        own = make().scores(twice, names)
        assert (own[0] - own[1]).abs().max() > 1e-5

    def test_an_image_in_which_none_passes(self, make: Any) -> None:
        images = batch()["image"]
        switches: dict[str, Any] = {"token_gate": 1.0, "no_class_passes": "ungated"}
        assert torch.equal(self.scores(make, images, **switches), self.scores(make, images, token_gate=0.0))

    def test_as_trained_follows_the_training_maps(self, make: Any) -> None:
        images = batch()["image"]
        probabilities = {"ce_input": "probabilities"}
        found = self.scores(make, images, test_softmax="as_trained", **probabilities)
        assert torch.equal(found, self.scores(make, images, test_softmax="all_tokens", **probabilities))


class TestMemoryBudget:
    def test_calls_hold_as_many_patches_as_fit(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        method, images, ids = make(patch_size=48, patches_per_side=2), batch(3)["image"], ["a", "b", "c"]
        whole = method.scores(images, ids)
        sizes: list[int] = []
        encode = method.backbone.encode
        monkeypatch.setattr(
            method.backbone,
            "encode",
            lambda part, noise, **rest: (sizes.append(len(part)), encode(part, noise, **rest))[1],
        )
        for per_call, expected in ((100, [12]), (5, [5, 5, 2]), (1, [1] * 12)):
            sizes.clear()
            monkeypatch.setattr(method.backbone, "images_per_call", lambda _, n=per_call: n)
            same(method.scores(images, ids), whole, **TINY, magnitude=1.0)
            assert sizes == expected


class TestLearnedState:
    def test_round_trip(self, make: Any) -> None:
        trained, fresh, images = make(start=Start("random"), seed=3), make(seed=3), batch()["image"]
        state = trained.learned_state()
        assert list(state) == ["embeddings"] and not state["embeddings"].requires_grad
        assert not torch.equal(fresh.scores(images, ["a", "b"]), trained.scores(images, ["a", "b"]))
        fresh.load_learned_state(state)
        assert torch.equal(fresh.scores(images, ["a", "b"]), trained.scores(images, ["a", "b"]))
        assert fresh.embeddings.requires_grad

    def test_a_state_of_other_classes_is_refused(self, make: Any) -> None:
        with pytest.raises(ConfigError, match="another class list"):
            make().load_learned_state(make(classes=[*CLASSES, "plate"]).learned_state())


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_a_label_is_the_first_class_of_the_highest_score(images: int, classes: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, 4, (images, classes, 5, 7)).astype(np.float32)  # few values: many are equal
    found = label_maps(torch.from_numpy(scores))
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), scores.argmax(1))


class Scripted(SegmentationMethod):
    """Predicts, in each epoch, how many of the four pixels it is told to get right."""

    epochs = 5

    def __init__(self, right: Sequence[int]) -> None:
        super().__init__(["background", "part"], keep_maps=1)
        self.right, self.value = right, nn.Parameter(torch.zeros(()))

    def scores(self, images: torch.Tensor, ids: Sequence[str]) -> torch.Tensor:
        wrong = 4 - self.right[min(self.current_epoch, len(self.right) - 1)]
        maps = torch.zeros(len(images), 2, 2, 2)
        maps[:, 1] = 1
        maps[:, 1].view(len(images), 4)[:, :wrong] = -1
        return maps

    def training_step(self, data: Any, _: int) -> torch.Tensor:
        return -self.value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.value], lr=1.0)

    def learned_state(self) -> dict[str, torch.Tensor]:
        return {"value": self.value.detach()}

    def load_learned_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self.value.data.copy_(state["value"])


@pytest.mark.parametrize(("right", "best"), [([1, 3, 2, 0, 1], 1), ([1, 3, 2, 3, 1], 3), ([0, 0, 0, 0, 0], 4)])
@pytest.mark.filterwarnings("ignore")
def test_validation_chooses_the_best_state_and_the_later_of_two(right: list[int], best: int) -> None:
    method = Scripted(right)
    item = {"image": torch.zeros(3, 2, 2), "label": torch.ones(2, 2, dtype=torch.long), "id": "a", "epoch": 0}
    loader = torch.utils.data.DataLoader([item], batch_size=1)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=5, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(method, loader, loader)
    assert method.best_epoch == best and method.best_score == pytest.approx(right[best] / 4)
    assert method.value.item() == 5
    method.use_best_state()
    assert method.value.item() == best + 1
    trainer.test(method, loader, verbose=False)
    assert method.test_ids == ["a"] and method.test_metric.counts().num_images == 1
    assert [sorted(kept) for kept in method.examples] == [["image", "label", "maps", "prediction"]]
