"""One configuration with one seed -> one TrialResult, in files.

A finished trial with the same signature is returned as it is. `result.json` is written last and atomically: it alone
proves that the trial finished.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import os
import platform
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from slime_bench import identity, results
from slime_bench.device import check_precision, pick_device
from slime_bench.errors import ConfigError, DeviceError, SlimeBenchError, StorageError
from slime_bench.logger import closed_logger
from slime_bench.results import TrialResult
from slime_bench.schema import build, load_target, parse
from slime_bench.storage import ordered, write_atomic

_log = logging.getLogger(__name__)
_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "numpy",
    "pillow",
    "slime-bench",
)
# The backbone's weights have the precision themselves (`backbone.dtype`); maps, losses and embeddings are float32 in
# any case. Only fp16 needs more: without the scaling of the loss, which comes with it here, small gradients become 0.
_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "32-true", "fp16": "16-mixed"}


def run(cfg: DictConfig) -> TrialResult:
    """Run the trial that a validated configuration describes, or return its finished result.

    Raises:
        SlimeBenchError: any mistake that the user can mend; finished trials are untouched.
    """
    device = pick_device(cfg.trainer.device)
    check_precision(cfg.trainer.precision, device)
    cfg = cast(DictConfig, OmegaConf.merge(cfg, {"trainer": {"device": device}}))  # auto and its meaning are one trial
    backbone_class, method_class = load_target(cfg.backbone["_target_"]), load_target(cfg.method["_target_"])
    check_parts(cfg, method_class, backbone_class)
    data = build(cfg.data, shots=cfg.shots, seed=cfg.seed)
    data.prepare_data()
    fingerprints = {
        "data": data.fingerprint(),
        "backbone": backbone_class.content_hash_of(parse(cfg.backbone)),
        **method_class.fingerprints(parse(cfg.method)),
    }
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    signature = identity.signature(plain, fingerprints)
    folder = identity.trial_folder(cfg.output_root, cfg.data.name, cfg.method.name, cfg.shots, cfg.seed, signature)
    title = f"{cfg.method.name} {cfg.data.name} {cfg.shots}-shot seed {cfg.seed}"
    finished = None if cfg.force else results.find_finished(folder, signature)
    if finished is not None:
        result = finished.under(cfg.metric.convention, cfg.metric.background)
        _log.info("%s  already finished: mIoU %s  %s", title, _percent(result.average), folder)
        return result
    method_class.check(parse(cfg.method), backbone_facts(cfg.backbone), data.classes, cfg.data.image_size, cfg.shots)
    _prepare(folder, plain)
    with closed_logger(cfg), recorded_failure(folder), threads(cfg.trainer.threads, cfg.trainer.deterministic):
        return _compute(cfg, plain, data, fingerprints, folder, title)


def check_parts(cfg: DictConfig, method: Any, backbone: type) -> None:
    """Refuse parts that do not go together: a method reads one kind of backbone under one kind of protocol.

    Raises:
        ConfigError: a backbone or protocol of another method's, or fewer shots than the method needs.
    """
    for group, expected, found in (
        ("backbone", method.Backbone, backbone),
        ("protocol", method.Protocol, load_target(cfg.protocol["_target_"])),
    ):
        if not issubclass(found, expected):
            raise ConfigError(
                f"the method {cfg.method.name} cannot use this {group}", path=group,
                found=f"{cfg[group].name} ({found.__name__})", expected=f"a {expected.__name__}",
                remedy="choose a preset, which goes with its method: preset=mini (SLiMe), preset=mini_vlm (attention "
                "of a vision-language model), or paper, paper_vlm",
            )  # fmt: skip
    if cfg.shots < method.least_shots:
        raise ConfigError(
            f"the method {cfg.method.name} needs a support image", path="shots", found=cfg.shots,
            expected=f"{method.least_shots} or more", remedy=f"e.g. shots={method.least_shots}",
        )  # fmt: skip


def backbone_facts(node: DictConfig) -> Any:
    """What the class of a backbone node tells of it before it is loaded; None where it has no `describe`.

    Raises:
        BackboneError: what it names is missing or cannot work.
    """
    describe = getattr(load_target(node["_target_"]), "describe", None)
    return describe(parse(node)) if describe is not None else None


def _compute(
    cfg: DictConfig, plain: Any, data: Any, fingerprints: dict[str, str], folder: Path, title: str
) -> TrialResult:
    """Fit, test, write."""
    began = time.monotonic()
    data.setup()  # mistakes in the data come before the backbone is loaded
    backbone = build(cfg.backbone)
    method = build(
        cfg.method,
        protocol=build(cfg.protocol),
        backbone=backbone,
        classes=data.classes,
        seed=cfg.seed,
        keep_maps=cfg.save_maps,
    )
    try:
        return _fit_and_test(cfg, plain, data, fingerprints, folder, title, method, began)
    finally:
        method.restore()


def _fit_and_test(
    cfg: DictConfig, plain: Any, data: Any, fingerprints: dict[str, str], folder: Path, title: str, method: Any,
    began: float,
) -> TrialResult:  # fmt: skip
    method.prepare(data, cfg.trainer.device)
    data.support_group = method.support_group
    trainer, progress = make_trainer(cfg, data, method, folder, title)
    if method.epochs > 0:
        trainer.fit(method, data)
        method.use_best_state()
    fitted = time.monotonic()
    trainer.test(method, data, verbose=False)
    counts = method.test_metric.counts()
    result = results.from_counts(
        counts,
        config=plain,
        fingerprints=fingerprints,
        method=cfg.method.name,
        backbone=cfg.backbone.name,
        data=cfg.data.name,
        subject=cfg.data.subject,
        shots=cfg.shots,
        seed=cfg.seed,
        preset=cfg.preset,
        protocol=cfg.protocol.name,
        classes=data.classes,
        convention=cfg.metric.convention,
        background=cfg.metric.background,
        support_ids=data.support_ids,
        prepared=data.prepared(),
        validation={"score": method.best_score, "epoch": method.best_epoch} if method.best_epoch is not None else {},
    )
    save_state(folder / "state.safetensors", method.learned_state(), plain, data.classes)
    results.write_per_image(folder / "per_image.parquet", method.test_ids, data.classes, counts)
    _write_qualitative(folder, method)
    for name, content in method.extra_files().items():
        write_atomic(folder / name, content)
    seconds = {"fit": round(fitted - began, 2), "test": round(time.monotonic() - fitted, 2)}
    write_atomic(folder / "environment.json", _json(environment(cfg.trainer.device, seconds)))
    (folder / "error.json").unlink(missing_ok=True)
    results.write_result(folder, result)
    if progress is not None:
        progress.finish(f"mIoU {_percent(result.average)}")
    return result


def make_trainer(cfg: DictConfig, data: Any, method: Any, folder: Path, title: str) -> tuple[Any, Any]:
    import lightning

    from slime_bench.logger import make_logger
    from slime_bench.progress import ProgressLine

    passes = int(cfg.data.passes_per_epoch)
    steps = method.epochs * math.ceil(len(data.support_ids) / (method.support_group or cfg.data.train_batch_size))
    steps = min(steps, method.max_steps or steps)
    progress = ProgressLine(title, steps, len(data.test_dataloader())) if cfg.trainer.progress else None
    trainer = lightning.Trainer(
        accelerator=cfg.trainer.device if cfg.trainer.device == "cpu" else "gpu",
        devices=1,
        precision=_PRECISION[cfg.trainer.precision],
        max_epochs=math.ceil(method.epochs / passes),
        max_steps=steps or -1,
        num_sanity_val_steps=0,
        logger=make_logger(cfg, folder),
        callbacks=[progress] if progress is not None else [],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        deterministic="warn" if cfg.trainer.deterministic else False,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    return trainer, progress


def _prepare(folder: Path, plain: Any) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            "the trial's folder cannot be made", path=folder, found=error.strerror, expected="a writable folder",
            remedy="choose another with output_root=<folder>, or free some space",
        ) from error  # fmt: skip
    if not plain["force"]:  # it is there and not valid; a valid one is only ever replaced, should the new run fail
        (folder / "result.json").unlink(missing_ok=True)
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(identity.redact(plain), sort_keys=True).encode())


@contextmanager
def recorded_failure(folder: Path) -> Iterator[None]:
    """Leave `error.json` in the folder when the block fails, and pass the error on."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        typed = typed_error(error)
        facts = {
            "type": type(typed).__name__,
            "message": str(typed),
            "summary": getattr(typed, "summary", str(typed)),
            "traceback": "".join(traceback.format_exception(error)),
        }
        try:
            write_atomic(folder / "error.json", _json(facts))
        except SlimeBenchError as second:  # a full disk must not hide the first error
            _log.warning("the error could not be recorded: %s", second.summary)
        else:
            if not isinstance(typed, SlimeBenchError):  # a typed error's message says all that the file does
                typed.add_note(f"see {folder / 'error.json'}")
        if typed is error:
            raise
        raise typed from error


def typed_error(error: BaseException) -> BaseException:
    """CUDA's out-of-memory error with a remedy; any other error as it is."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return DeviceError(
        "the GPU has too little memory",
        path="trainer.device",
        found=f"peak of {peak:.1f} GiB, then: {str(error).splitlines()[0]}",
        expected="enough memory for data.batch_size test images at once",
        remedy="lower data.batch_size (it does not change any number), or use trainer.precision=bf16",
    )


@contextmanager
def threads(count: int | None, deterministic: bool) -> Iterator[None]:
    """Set torch's CPU threads for a while; the global generator is seeded only so that nothing unseeded can leak in."""
    before, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if count is not None:
        torch.set_num_threads(count)
    torch.manual_seed(0)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA first multiplies
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(was_deterministic)


def save_state(path: Path, learned: Mapping[str, torch.Tensor], config: Any, classes: Any) -> None:
    """The learned tensors as safetensors, with all that inference needs besides the backbone in the metadata."""
    from safetensors.torch import save

    groups = ("method", "protocol", "backbone", "data")
    facts = {"classes": json.dumps(list(classes)), "seed": str(config["seed"])}
    facts |= {name: json.dumps(identity.redact(config[name]), sort_keys=True) for name in groups}
    tensors = {name: value.detach().cpu().contiguous() for name, value in learned.items()}
    write_atomic(path, ordered(save(tensors, metadata=facts)))


def _write_qualitative(folder: Path, method: Any) -> None:
    if not method.kept:
        return
    from slime_bench.qualitative import QUALITATIVE_FILE, GridItem, write_qualitative

    items = [
        GridItem(
            image_id=name,
            image=(one["image"] * 255).round().byte().permute(1, 2, 0).numpy(),
            label=one["label"].byte().numpy(),
            prediction=one["prediction"].byte().numpy(),
            maps=one["maps"].half().numpy(),
        )
        for name, one in zip(method.test_ids, method.kept, strict=False)
    ]
    write_qualitative(folder / QUALITATIVE_FILE, items, method.classes)


def environment(device: str, seconds: dict[str, float]) -> dict[str, Any]:
    """What the numbers do not depend on but a reader may want: versions, machine, code state, time."""
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "git": _git_state(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "pid": os.getpid(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    here = Path(__file__).resolve().parent

    def run_git(*args: str) -> str:
        command = ["git", "-C", str(here), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        return {"commit": run_git("rev-parse", "HEAD").strip(), "dirty": bool(run_git("status", "--porcelain").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f}"
