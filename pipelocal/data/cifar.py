"""CIFAR-10 and CIFAR-100, in the Python or the binary form, whichever lies below the root."""

from dataclasses import dataclass
from pathlib import Path

from pipelocal.data.cifar_binary import BinaryForm, read_binary
from pipelocal.data.cifar_python import read_python
from pipelocal.data.dataset import ArrayDataset, DataInfo
from pipelocal.data.files import require_root
from pipelocal.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """One of the two sets and where its files are looked for.

    Attributes:
        info: name, sample shape and number of classes.
        mean, std: per channel, of the training images scaled to [0, 1].
        torchvision_class: the class of ``torchvision.datasets`` that reads the Python form.
        python_folder: the folder of the Python form below the root.
        binary: the files of the binary form.
        binary_in_root: the binary files may also lie in the root itself.
        layout: all of this in words, with ``DIR`` for the root.
    """

    info: DataInfo
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    torchvision_class: str
    python_folder: str
    binary: BinaryForm
    binary_in_root: bool
    layout: str

    def load(self, root: Path | None, _seed: int) -> ArrayDataset:
        """Read the set. If several forms are there: Python form, binary folder, root itself.

        The form is chosen by what is there, before anything is read: a bad file is an error even
        if another form is there too.

        Raises:
            DataError: no root, none of the forms, or a file is missing, truncated or corrupt.
        """
        name, layout = self.info.name, self.layout
        folder = require_root(root, name=name, layout=layout)
        if (folder / self.python_folder).exists():
            parts = read_python(folder, self.torchvision_class, name=name, layout=layout)
        else:
            parts = read_binary(
                self._find_binary(folder),
                self.binary,
                classes=self.info.classes,
                name=name,
                layout=layout,
            )
        train_x, train_y, test_x, test_y = parts
        return ArrayDataset(
            info=self.info,
            train_x=train_x,
            train_y=train_y,
            test_x=test_x,
            test_y=test_y,
            mean=self.mean,
            std=self.std,
            augment=True,
        )

    def _find_binary(self, root: Path) -> Path:
        folder = root / self.binary.folder
        if folder.exists():
            return folder
        files = (*self.binary.train_files, self.binary.test_file)
        if self.binary_in_root and any((root / file).exists() for file in files):
            return root
        raise DataError(
            f"data set '{self.info.name}': {root} holds none of its files: "
            f"give --data-root DIR with {self.layout}"
        )


CIFAR10 = Cifar(
    info=DataInfo(name="cifar10", sample_shape=(3, 32, 32), classes=10),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    torchvision_class="CIFAR10",
    python_folder="cifar-10-batches-py",
    binary=BinaryForm(
        folder="cifar-10-batches-bin",
        train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test_file="test_batch.bin",
        train_records=10_000,
        test_records=10_000,
        label_bytes=1,
    ),
    binary_in_root=True,
    layout=(
        "DIR/cifar-10-batches-py/ (data_batch_1 to 5, test_batch, batches.meta), or "
        "data_batch_1.bin to data_batch_5.bin and test_batch.bin in DIR/cifar-10-batches-bin/ "
        "or in DIR itself"
    ),
)

CIFAR100 = Cifar(
    info=DataInfo(name="cifar100", sample_shape=(3, 32, 32), classes=100),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    torchvision_class="CIFAR100",
    python_folder="cifar-100-python",
    binary=BinaryForm(
        folder="cifar-100-binary",
        train_files=("train.bin",),
        test_file="test.bin",
        train_records=50_000,
        test_records=10_000,
        label_bytes=2,
    ),
    binary_in_root=False,
    layout=(
        "DIR/cifar-100-python/ (train, test, meta) or DIR/cifar-100-binary/ (train.bin, test.bin)"
    ),
)
