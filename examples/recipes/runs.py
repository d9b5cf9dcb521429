"""Runs of training: their options, folders, checkpoints, and how they go on."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

import tf_deformable
from recipes.backbones import HELP
from recipes.problems import DataError

STRATEGIES = ("none", "mirrored")
POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")


def size_option(text: str) -> tuple[int, int]:
    """Returns (height, width) of "512" or "480x640"."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"must be as 512 or 480x640 (height, width), got {text!r}")
    return int(parts[0]), int(parts[-1])


def positive_option(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Returns the type of an option that takes positive numbers of a kind."""

    def positive(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be a positive {kind.__name__}, got {text!r}")
        return value

    return positive


def add_training_options(parser: argparse.ArgumentParser, size: str) -> None:
    """Adds what trainings of all kinds take."""
    count, number = positive_option(int), positive_option(float)
    group = parser.add_argument_group("network")
    group.add_argument("--backbone", default="ResNet50", metavar="NAME", help=HELP)
    group.add_argument(
        "--weights",
        default="none",
        help="none: random, needs no download; imagenet (keras.applications), preset (KerasHub), "
        "or a weights file (keras.applications)",
    )
    group.add_argument(
        "--level", help="which map of a backbone with several, as P4 (default: the coarsest)"
    )
    group.add_argument(
        "--plain", action="store_true", help="nothing is deformable (to compare with)"
    )
    group.add_argument("--modulated", action="store_true", help="DCNv2: samples have weights too")
    group.add_argument(
        "--dilate", action="store_true", help="the last stage keeps its resolution, as in the paper"
    )
    group = parser.add_argument_group("training")
    group.add_argument(
        "--size", type=size_option, default=size, metavar="SIZE",
        help="images are scaled to fit into it, and padded: 512, or 480x640, height and width",
    )  # fmt: skip
    group.add_argument("--epochs", type=count, default=12, metavar="N")
    group.add_argument(
        "--batch", type=count, default=8, metavar="N", help="images per step, of all devices"
    )
    group.add_argument(
        "--learning-rate", type=number, default=1e-3, metavar="RATE",
        help="of Adam; it rises for a tenth of the steps, then falls as a cosine",
    )  # fmt: skip
    group.add_argument(
        "--precision", choices=POLICIES, default="float32", help="policy of the layers"
    )
    group.add_argument(
        "--strategy", choices=STRATEGIES, default="none",
        help="mirrored: tf.distribute over all GPUs of this machine",
    )  # fmt: skip
    group.add_argument(
        "--no-mirror", action="store_true",
        help="images are not mirrored: for what a mirror changes, as letters",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="of weights, order and mirroring")
    group.add_argument("--resume", action="store_true", help="go on with the run in --output")
    group.add_argument("--no-export", action="store_true", help="write no SavedModel at the end")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of the run."""
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER",
        help="where checkpoints, TensorBoard's files and the exported model go",
    )  # fmt: skip


def command(main: Callable[[], None]) -> None:
    """Runs a command line; what is wrong with data is said in a line, without a traceback."""
    try:
        main()
    except DataError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def strategy_scope(name: str) -> Any:
    """Returns the context in which the model of a strategy is made."""
    if name == "none":
        return contextlib.nullcontext()
    strategy = tf.distribute.MirroredStrategy()
    print(f"tf.distribute: {strategy.num_replicas_in_sync} replicas")
    return strategy.scope()


def optimizer(rate: float, steps: int) -> Any:
    """Returns Adam with a warm-up and bounded gradients: large steps throw offsets far."""
    warmup = max(steps // 10, 1)
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - warmup, 1), warmup_target=rate, warmup_steps=warmup
    )
    return tf.keras.optimizers.Adam(schedule, global_clipnorm=10.0)


class Run:
    """The folder of a run.

    `config.json` says how it was made, `state.json` how far it is; `last-NNNN.keras` is the model
    after the last epoch, with its optimizer, and `best.keras` that of the best one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best = folder / "best.keras"

    @property
    def logs(self) -> Path:
        """The folder of TensorBoard's files."""
        return self.folder / "logs"

    def begin(self, config: dict[str, Any], resume: bool) -> dict[str, Any] | None:
        """Makes the folder; returns the state to go on from, None to begin.

        Raises:
            DataError: there is a run and it is not to be resumed; or the other way round; or it
                was begun with other classes.
        """
        path = self.folder / "config.json"
        if resume:
            old = self.config()
            for name in ("classes", "size"):
                if old.get(name) != config[name]:
                    raise DataError(
                        f"--resume: the run in {self.folder} has {name} {old.get(name)}, "
                        f"now {config[name]}"
                    )
            state = self.folder / "state.json"
            return json.loads(state.read_text()) if state.exists() else None
        if path.exists():
            raise DataError(
                f"{self.folder} has a run already: go on with --resume, or give another --output"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(path, config)
        return None

    def config(self) -> dict[str, Any]:
        """Returns what the run was begun with."""
        path = self.folder / "config.json"
        if not path.is_file():
            raise DataError(f"{self.folder} has no run: there is no config.json")
        return json.loads(path.read_text())

    def load(self, name: str) -> Any:
        """Returns a model of the run."""
        path = self.folder / name
        if not path.is_file():
            raise DataError(f"{path} is not there: the run has not come to the end of an epoch")
        return tf.keras.models.load_model(path)


class Checkpoints(tf.keras.callbacks.Callback):
    """Keeps the last model, to go on from, and the best one.

    Args:
        run: where.
        metric: name of what is the higher, the better.
        best: the best value so far.
    """

    def __init__(self, run: Run, metric: str, best: float | None = None) -> None:
        super().__init__()
        self.run, self.metric, self.best = run, metric, best

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the models, then the state: whatever ends the process, the state has its file."""
        value = (logs or {}).get(self.metric)
        if self.best is None or value is None or value > self.best:
            self.best = value
            _save(self.model, self.run.best)
        name = f"last-{epoch + 1:04d}.keras"
        _save(self.model, self.run.folder / name)
        _write(
            self.run.folder / "state.json", {"epochs": epoch + 1, "model": name, "best": self.best}
        )
        for other in self.run.folder.glob("last-*.keras"):
            if other.name != name:
                other.unlink()


def fit(
    run: Run,
    state: dict[str, Any] | None,
    options: argparse.Namespace,
    build: Callable[[], Any],
    compile_model: Callable[[Any, Any], None],
    data: tf.data.Dataset,
    callbacks: Sequence[Any],
    metric: str,
    validation: tf.data.Dataset | None = None,
) -> Any:
    """Trains a model, or goes on with that of the run; returns the best one.

    Args:
        run: its folder.
        state: what `Run.begin` returned.
        options: the command line's, see `add_training_options`.
        build: returns a new model.
        compile_model: is called with a new model and its optimizer.
        data: batches.
        callbacks: those that measure come first: what they put into the logs is seen by others.
        metric: what the best model is best in.
        validation: batches that Keras evaluates the model on after every epoch.
    """
    steps = int(data.cardinality())
    if state is not None and state["epochs"] >= options.epochs:
        print(f"{run.folder} has {state['epochs']} epochs already (--epochs {options.epochs})")
        return run.load("best.keras")
    with strategy_scope(options.strategy):
        if state is not None:
            model = run.load(state["model"])
            print(f"Going on after epoch {state['epochs']}, from {state['model']}")
        else:
            model = build()
            compile_model(model, optimizer(options.learning_rate, steps * options.epochs))
            print(
                f"{model.name}: {model.count_params():,} weights; "
                f"{tf_deformable.config.get_backend()} operators; {steps} steps an epoch"
            )
    model.fit(
        data,
        epochs=options.epochs,
        validation_data=validation,
        shuffle=False,  # They are.
        initial_epoch=0 if state is None else state["epochs"],
        callbacks=[*callbacks, Checkpoints(run, metric, None if state is None else state["best"])],
        verbose=1 if sys.stdout.isatty() else 2,
    )
    return run.load("best.keras")


def export(model: Any, folder: Path) -> None:
    """Writes a SavedModel that any TensorFlow serves, without this package."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # a line per weight
        tf_deformable.export.saved_model(model, folder, measure=False)
    print(f"Exported: {folder} (a SavedModel of TensorFlow's operators alone)")


def _save(model: Any, path: Path) -> None:
    temporary = path.with_name(f"writing-{path.name}")  # a file that is there is whole
    model.save(temporary)
    os.replace(temporary, path)


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"writing-{path.name}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
