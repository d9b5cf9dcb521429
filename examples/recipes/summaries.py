"""What TensorBoard shows: numbers and pictures. Writing them does not need it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf


class Summaries(tf.keras.callbacks.Callback):
    """Writes what every epoch measures, and pictures of what the model does.

    `tf.summary.scalar` and `tf.summary.image` would need TensorBoard since TensorFlow 2.20.

    Args:
        folder: of the event files.
        draw: is called with the model after each epoch, and returns pictures `[H, W, 3]`, uint8,
            by their names.
    """

    def __init__(self, folder: Path, draw: Callable[[Any], dict[str, Any]]) -> None:
        super().__init__()
        self.folder = folder
        self.draw = draw
        self._writer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the event file."""
        self._writer = tf.summary.create_file_writer(str(self.folder))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes."""
        rate = self.model.optimizer.learning_rate
        numbers = {**(logs or {}), "learning_rate": rate}
        with self._writer.as_default(epoch):
            for name, value in numbers.items():
                _write(name, tf.cast(tf.convert_to_tensor(value), tf.float32), "scalars", 1)
            for name, picture in self.draw(self.model).items():
                height, width, _ = picture.shape
                encoded = tf.io.encode_png(np.asarray(picture))
                _write(name, tf.stack([str(width), str(height), encoded]), "images", 3)
        self._writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the event file."""
        self._writer.close()


def _write(tag: str, value: Any, plugin: str, data_class: int) -> None:
    kind = tf.compat.v1.SummaryMetadata
    metadata = kind(plugin_data=kind.PluginData(plugin_name=plugin), data_class=data_class)
    tf.summary.write(tag, value, metadata=metadata)
