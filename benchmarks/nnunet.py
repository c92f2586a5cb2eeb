"""nnU-Net v2 and MedDuet on the same volumes, each trained for the same minutes on the CPU.

    pip install nnunetv2
    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.nnunet OUT MINUTES

130 phantoms of 24 x 48 x 48 voxels of 2 x 1 x 1 mm with one to three lesions, or none: 104 to train
on, 26 to test. nnU-Net (3d_fullres, all folds in one) learns the mask, in as many epochs as the
time allows, of 10 iterations each in place of 250, by its own schedule; MedDuet class and mask by
``auto``, which takes a part of the 104 to validate on. Printed are minutes and memory of training
and of predicting, and Dice of the test volumes with a lesion, counted here from the files that each
has written, and the share of the others on which something is drawn.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np

import medduet
from medduet.metrics.intervals import bootstrap_mean

COUNT, SIDE, STEPS = 130, 48, 10


def draw(out: Path) -> None:
    """Write the phantoms in nnU-Net's layout, and a table of their classes for MedDuet."""
    raw = out / "raw" / "Dataset001_Phantom"
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (raw / name).mkdir(parents=True, exist_ok=True)
    images = medduet.open_images("phantom3d", size=SIDE, count=COUNT)
    rows, affine = ["path,mask,label,split"], np.diag((-1.0, -1.0, 2.0, 1.0))
    for split, part in (("train", images.train), ("val", images.val), ("test", images.test)):
        end = "Ts" if split == "test" else "Tr"
        batch = part.batch(np.arange(len(part)))
        for k, (label, *volumes) in enumerate(zip(batch.label, batch.image, batch.mask)):  # noqa: B905
            image, mask = (each.numpy().reshape(SIDE, SIDE, SIDE)[::2].T for each in volumes)
            paths = f"images{end}/{split}{k:03d}_0000.nii.gz", f"labels{end}/{split}{k:03d}.nii.gz"
            for path, voxels in zip(paths, (image, mask.astype(np.uint8)), strict=True):
                nibabel.save(nibabel.Nifti1Image(voxels, affine), raw / path)
            rows.append(f"{paths[0]},{paths[1]},{images.class_names[int(label)]},{split}")
    (raw / "classes.csv").write_text("\n".join(rows))
    count = len(list((raw / "imagesTr").iterdir()))
    about = {"channel_names": {"0": "phantom"}, "labels": {"background": 0, "lesion": 1}}
    about |= {"numTraining": count, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(about))


def run(*words: object) -> tuple[float, float]:
    """Run a command; return its minutes, and the most memory of its processes in GB."""
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, words)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{words} failed")
    return (time.perf_counter() - start) / 60, usage.ru_maxrss / 2**20


def train_nnunet(minutes: float) -> None:
    """Train in this process, after two epochs that are timed and thrown away."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    epochs, seconds = 2, 0.0
    for _ in range(2):
        trainer = get_trainer_from_args("1", "3d_fullres", "all", device=torch.device("cpu"))
        trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = STEPS, 1
        trainer.num_epochs = epochs
        start = time.perf_counter()
        trainer.run_training()
        seconds = (time.perf_counter() - start) / epochs
        epochs = max(1, int(60 * minutes / seconds))
    print(f"nnU-Net: {trainer.num_epochs} epochs of {STEPS} steps, {seconds:.1f} s each")


def judge(name: str, predicted: Path, truth: Path) -> None:
    """Print the Dice of the masks in a folder."""
    dice, drawn = list[float](), list[bool]()
    for path in sorted(truth.iterdir()):
        stem = path.name.removesuffix(".nii.gz")
        found = next(x for x in predicted.rglob("*.nii.gz") if x.name.startswith(stem))
        mask, own = (np.asarray(nibabel.load(x).dataobj) > 0 for x in (path, found))
        if mask.any():
            dice.append(2 * (mask & own).sum() / (mask.sum() + own.sum()))
        else:
            drawn.append(bool(own.any()))
    interval = bootstrap_mean(np.array(dice))
    print(
        f"{name}: Dice {np.mean(dice):.3f} ({interval[0]:.3f} to {interval[1]:.3f}), n = "
        f"{len(dice)}; something is drawn on {sum(drawn)} of {len(drawn)} volumes without a lesion"
    )


def main(folder: str, minutes: str) -> None:
    out = Path(folder).absolute()
    raw = out / "raw" / "Dataset001_Phantom"
    if not raw.exists():
        draw(out)
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(out / name)
    os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112
    us, it, tests, tool = out / "medduet", out / "nnunet", raw / "imagesTs", [sys.executable, "-m"]
    data = "--data", raw / "classes.csv", "--out", us / "run"
    budget = f"{round(60 * float(minutes))}s"
    ours = [run(*tool, "medduet", "train", "auto", "--time-budget", budget, *data)]
    ours.append(run(*tool, "medduet", "predict", us / "run", tests, "--out", us / "masks"))
    planned = run("nnUNetv2_plan_and_preprocess", "-d", 1, "-c", "3d_fullres", "-np", 1)
    theirs = [run(*tool, "benchmarks.nnunet", "--train", minutes)]
    end = "-d", 1, "-c", "3d_fullres", "-f", "all", "-device", "cpu", "-npp", 1, "-nps", 1
    theirs.append(run("nnUNetv2_predict", "-i", tests, "-o", it, *end))
    print(f"nnU-Net planned and preprocessed for {planned[0]:.1f} min")
    for name, costs, masks in (("MedDuet", ours, us / "masks"), ("nnU-Net", theirs, it)):
        for what, (spent, memory) in zip(("trained", "predicted"), costs, strict=True):
            print(f"{name} {what} for {spent:.1f} min, with {memory:.2f} GB at most")
        judge(name, masks, raw / "labelsTs")


if __name__ == "__main__":
    if sys.argv[1] == "--train":
        train_nnunet(float(sys.argv[2]))
    else:
        main(*sys.argv[1:])
