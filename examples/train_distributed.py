"""Trains a deformable network on handwritten digits: on one machine, or on several, unchanged.

    python examples/train_distributed.py [--epochs 4] [--directory build/distributed]

By itself it uses all GPUs of the machine, or the CPU. On several machines every one runs the same
command, with the environment variable TF_CONFIG, which names them all and says which one this is:

    TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
                "task": {"type": "worker", "index": 0}}' python examples/train_distributed.py

The batch is divided among the devices of all workers, so what is learnt does not depend on how many
there are. `--directory` must be the same folder for all of them. Worker 0 writes a checkpoint there
every `--save-every` steps. If a worker is killed, the others start again by themselves and wait
until it has been started again too; then all go on from the last checkpoint, and end with the
weights of a training that nobody has disturbed, on CPUs bit by bit. A command that is run again
after the end of training does nothing but say so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow: its notes on the machine

import numpy as np
import tensorflow as tf
from digits import CANVAS, Digits, load

import tf_deformable

# What collective operations, and the attempt to join the others, say when one of them has gone.
LOST_A_WORKER = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnavailableError,
)
MODEL = "model.keras"
RESTARTS = "TRAIN_DISTRIBUTED_RESTARTS"  # how often this process has started itself again


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained, and how far; the same in every worker."""

    batch: int  # images of a step, of all devices together
    steps_per_epoch: int
    steps: int
    save_every: int
    seed: int


def main() -> None:
    """Trains, and trains again where a worker was lost."""
    arguments = parse_arguments()
    try:
        train(arguments)
    except LOST_A_WORKER as error:
        # The servers of this process know those of the others as they were; only a new process can
        # meet them again.
        restarts = int(os.environ.get(RESTARTS, "0"))
        if "TF_CONFIG" not in os.environ or restarts >= arguments.max_restarts:
            raise
        say(f"lost a worker ({type(error).__name__}), starting again")
        time.sleep(1.0)
        os.environ[RESTARTS] = str(restarts + 1)
        os.execv(sys.executable, [sys.executable, *sys.argv])


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("build/distributed"),
        help="for checkpoints and the model, shared by all workers (default: build/distributed)",
    )
    parser.add_argument("--epochs", type=int, default=4, help="default: 4")
    parser.add_argument(
        "--batch", type=int, default=64, help="images of a step, of all devices (default: 64)"
    )
    parser.add_argument(
        "--save-every",
        type=int,
        default=20,
        help="steps from checkpoint to checkpoint (default: 20)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and images (default: 0)")
    parser.add_argument("--copies", type=int, default=2, help="images per scan, size (default: 2)")
    parser.add_argument("--max-scans", type=int, help="use so many scans only (default: all)")
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=100,
        help="how often a worker starts itself again after it has lost another (default: 100)",
    )
    return parser.parse_args()


def train(arguments: argparse.Namespace) -> None:
    """Trains from the last checkpoint to the end, and evaluates the network."""
    data = load(seed=arguments.seed, copies=arguments.copies, max_scans=arguments.max_scans)
    steps_per_epoch = len(data.training) // arguments.batch
    if steps_per_epoch == 0:
        raise SystemExit(f"--batch {arguments.batch}: there are {len(data.training)} images only")
    plan = Plan(
        batch=arguments.batch,
        steps_per_epoch=steps_per_epoch,
        steps=arguments.epochs * steps_per_epoch,
        save_every=arguments.save_every,
        seed=arguments.seed,
    )
    if is_finished(arguments.directory, plan):  # the others need not be there any more
        say(f"training has ended at step {plan.steps}; see {arguments.directory}")
        return

    # Without it the order of sums, hence rounding, may differ from run to run.
    tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(plan.seed)
    strategy = choose_strategy()
    say(
        f"{strategy.num_replicas_in_sync} replicas, {len(data.training)} images, "
        f"{plan.steps} steps of {plan.batch} images"
    )
    with strategy.scope():
        model = build_network()
        optimizer = tf.keras.optimizers.Adam(learning_rate(plan))
        optimizer.build(model.trainable_variables)  # before a checkpoint is read into it
        step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, step=step)
        resume(strategy, checkpoint, arguments.directory)
    # All workers save, since reading a variable may need them all; one keeps what it writes.
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.directory if is_chief() else Path(scratch)
        manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=2)
        run_steps(strategy, model, optimizer, checkpoint, manager, data.training, plan)
        accuracy = evaluate(strategy, model, data.test, plan.batch)
        model.save(folder / "unfinished.keras")
        (folder / "unfinished.keras").replace(folder / MODEL)  # whole, or not there
    say(
        f"accuracy {accuracy:.4f} on {len(data.test)} images; trained to step {step_of(checkpoint)}"
    )


# --- Who and where -------------------------------------------------------------------------------


def task() -> tuple[str, int]:
    """Returns this process' job and index in the cluster."""
    described = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {})
    return described.get("type", "worker"), int(described.get("index", 0))


def is_chief() -> bool:
    """Returns whether this process keeps what it writes."""
    return task() in (("chief", 0), ("worker", 0))


def say(text: str) -> None:
    """Prints a line that tells whose it is."""
    print("{}{}: {}".format(*task(), text), flush=True)


def choose_strategy() -> tf.distribute.Strategy:
    """Returns the strategy for the machines and devices there are.

    It waits for the workers that TF_CONFIG names.
    """
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


# --- Data ----------------------------------------------------------------------------------------


def batches(data: Digits, plan: Plan, done: int) -> tf.data.Dataset:
    """Returns the batches of an epoch that follow the first `done` steps of training.

    The order of an epoch follows from its number, so a training that was interrupted goes on with
    the images it would have seen. `AutoShardPolicy.DATA` gives each worker its part of every
    batch. Data in many files is read with `FILE`, where each worker opens files of its own.
    """
    epoch, seen = divmod(done, plan.steps_per_epoch)
    order = np.random.default_rng([plan.seed, epoch]).permutation(len(data))
    left = order[seen * plan.batch : plan.steps_per_epoch * plan.batch]
    return sharded(
        tf.data.Dataset.from_tensor_slices((data.images[left], data.labels[left])).batch(
            plan.batch, drop_remainder=True
        )
    )


def sharded(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset of global batches that strategies divide among the workers."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)


# --- Network -------------------------------------------------------------------------------------


def build_network() -> tf.keras.Model:
    """Returns a small network whose last two convolutions are deformable.

    Its normalisation is over the whole batch, wherever its parts are. An ordinary one normalises
    each replica's part by itself, and what is learnt depends on the number of replicas.
    """
    layers = tf.keras.layers
    network = tf.keras.Sequential([tf.keras.Input((CANVAS, CANVAS, 1))])
    for convolution in (
        layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False),
        layers.Conv2D(24, 3, strides=2, padding="same", use_bias=False),
        tf_deformable.DeformableConv2D(24, 3, padding="same", use_bias=False),
        tf_deformable.DeformableConv2D(24, 3, padding="same", use_bias=False, modulated=True),
    ):
        network.add(convolution)
        network.add(layers.BatchNormalization(momentum=0.9, synchronized=True))
        network.add(layers.ReLU())
    network.add(layers.GlobalAveragePooling2D())
    network.add(layers.Dense(10))
    return network


def learning_rate(plan: Plan) -> tf.keras.optimizers.schedules.LearningRateSchedule:
    """Returns a schedule that starts low: full steps at once would throw the offsets far away."""
    warmup = plan.steps // 5
    return tf.keras.optimizers.schedules.CosineDecay(
        0.0, plan.steps - warmup, warmup_target=4e-3, warmup_steps=warmup
    )


# --- Training ------------------------------------------------------------------------------------


def is_finished(directory: Path, plan: Plan) -> bool:
    """Returns whether the last checkpoint is that of the end, and the model is there."""
    last = tf.train.latest_checkpoint(str(directory))
    if last is None or not (directory / MODEL).exists():
        return False
    return int(tf.train.load_variable(last, "step/.ATTRIBUTES/VARIABLE_VALUE")) >= plan.steps


def resume(
    strategy: tf.distribute.Strategy, checkpoint: tf.train.Checkpoint, directory: Path
) -> None:
    """Reads the last checkpoint, if there is one, and checks that all have read the same."""
    last = tf.train.latest_checkpoint(str(directory))
    if last is not None:
        checkpoint.restore(last).assert_existing_objects_matched()
    mine = step_of(checkpoint)

    @tf.function
    def sum_of_steps() -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(tf.constant, args=(mine,)), axis=None)

    total = int(sum_of_steps())
    if total != mine * strategy.num_replicas_in_sync:
        raise RuntimeError(
            f"This worker finds a checkpoint of step {mine} in {directory}, others find another "
            "one: --directory must be one folder that all of them see."
        )
    say(f"starts at step {mine}")


def step_of(checkpoint: tf.train.Checkpoint) -> int:
    """Returns how many steps have been made for what a checkpoint holds."""
    return int(checkpoint.step.numpy())


def run_steps(
    strategy: tf.distribute.Strategy,
    model: tf.keras.Model,
    optimizer: tf.keras.optimizers.Optimizer,
    checkpoint: tf.train.Checkpoint,
    manager: tf.train.CheckpointManager,
    data: Digits,
    plan: Plan,
) -> None:
    """Trains from the checkpoint's step to the last one, and saves on the way."""
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def replica_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = loss(labels, model(images, training=True))
            part = tf.nn.compute_average_loss(losses, global_batch_size=plan.batch)
        gradients = tape.gradient(part, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return part

    @tf.function
    def global_step(batch: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(replica_step, args=batch), axis=None)

    done = step_of(checkpoint)
    while done < plan.steps:
        for batch in strategy.experimental_distribute_dataset(batches(data, plan, done)):
            value = global_step(batch)
            done += 1
            if done % plan.save_every == 0 or done == plan.steps:
                checkpoint.step.assign(done)
                manager.save(checkpoint_number=done)
                say(f"step {done} of {plan.steps}, loss {float(value):.4f}, saved")


def evaluate(
    strategy: tf.distribute.Strategy, model: tf.keras.Model, data: Digits, batch: int
) -> float:
    """Returns the share of images whose class is found; every worker looks at some of them."""

    @tf.function
    def right(batch: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        def replica_right(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            found = tf.argmax(model(images, training=False), axis=-1)
            return tf.math.count_nonzero(found == labels)

        return strategy.reduce("SUM", strategy.run(replica_right, args=batch), axis=None)

    dataset = tf.data.Dataset.from_tensor_slices((data.images, data.labels)).batch(batch)
    parts = strategy.experimental_distribute_dataset(sharded(dataset))
    return sum(int(right(part)) for part in parts) / len(data)


if __name__ == "__main__":
    main()
