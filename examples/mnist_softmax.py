"""Softmax regression on handwritten digits, the whole training step compiled as one graph.

    python examples/mnist_softmax.py                          # scikit-learn's bundled digits
    python examples/mnist_softmax.py --data DIR               # MNIST's IDX files t10k-*: train on the first 8,000
    FLOWC_GPU=sim python examples/mnist_softmax.py --device cuda --epochs 1

Forward pass, gradient and update are one jitted function: flowc sees them as one graph, fuses across them and plans
their memory together.  The last batch of an epoch may be shorter; it runs through the same code.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np

import flowc
from flowc.idx import load_mnist_part

CLASSES = 10
EPOCHS = {"mnist": 10, "digits": 30}


def loss(params, x, labels):
    """Mean cross entropy of softmax(x @ w + b) and the labels."""
    logits = x @ params["w"] + params["b"]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_prob = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    chosen = labels[:, None] == np.arange(CLASSES)
    return -np.where(chosen, log_prob, 0).sum(axis=1).mean()


def make_step(device: str, rate: float):
    """(params, x, labels) -> (params after one step of gradient descent, loss before it)."""

    @flowc.jit(device=device)
    def step(params, x, labels):
        value, slope = flowc.value_and_grad(loss)(params, x, labels)
        return {name: params[name] - rate * slope[name] for name in params}, value

    return step


def make_predict(device: str):
    """(params, x) -> the most likely class of each row."""

    @flowc.jit(device=device)
    def predict(params, x):
        return (x @ params["w"] + params["b"]).argmax(axis=1)

    return predict


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError:
        sys.exit("error: without --data DIR this example reads scikit-learn's digits, and scikit-learn is missing\n"
                 "cure: pip install 'flowc[examples]', or pass the folder of MNIST's IDX files with --data")
    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))  # the file is sorted by writer
    return (digits.data / 16).astype(np.float32)[order], digits.target.astype(np.int64)[order]


def load_mnist(folder: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_mnist_part(folder)
    return images.reshape(len(images), -1).astype(np.float32) / 255, labels.astype(np.int64)


def progress(total: int):
    """(advance, close) of a progress bar on standard error: tqdm's, or a plain one where tqdm is missing."""
    try:
        bar = importlib.import_module("tqdm").tqdm(total=total, unit="step", file=sys.stderr)
    except ImportError:
        print("note: a nicer progress bar comes with pip install 'flowc[examples]'", file=sys.stderr)
        done, drawn = 0, -1

        def advance(text: str) -> None:
            nonlocal done, drawn
            done += 1
            full = 30 * done // total
            if full != drawn:
                drawn = full
                print(f"\r[{'#' * full}{'.' * (30 - full)}] {done}/{total} {text}", end="", file=sys.stderr, flush=True)

        return advance, lambda: print(file=sys.stderr)

    def advance_tqdm(text: str) -> None:
        bar.set_postfix_str(text, refresh=False)
        bar.update()

    return advance_tqdm, bar.close


def train(step, params, x, labels, epochs: int, batch: int, seed: int):
    """Minibatch gradient descent in an order that the seed decides.  Returns the parameters and the losses."""
    rng = np.random.default_rng(seed)
    starts = range(0, len(x), batch)
    advance, close = progress(epochs * len(starts))
    losses: list[float] = []
    try:
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for start in starts:
                rows = order[start:start + batch]
                params, value = step(params, x[rows], labels[rows])
                losses.append(float(value))
                advance(f"loss {losses[-1]:.4f}")
    finally:
        close()
    return params, losses


def smooth(losses: list[float], window: int = 20) -> np.ndarray:
    width = min(window, len(losses))
    return np.convolve(losses, np.ones(width) / width, "valid")


def svg_curve(losses: list[float], width: int = 640, height: int = 360, edge: int = 48) -> str:
    """A picture of the losses as SVG text: raw in grey, smoothed in blue, axes with their ends."""
    top = max(max(losses), 1e-9)

    def line(values, colour: str) -> str:
        shift = len(losses) - len(values)
        points = " ".join(f"{edge + (width - 2 * edge) * (i + shift) / max(len(losses) - 1, 1):.1f},"
                          f"{height - edge - (height - 2 * edge) * v / top:.1f}" for i, v in enumerate(values))
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'

    def text(x: int, y: int, words: str) -> str:
        return f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="12">{words}</text>'

    frame = f'<path d="M{edge},{edge} V{height - edge} H{width - edge}" fill="none" stroke="black"/>'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
        '<rect width="100%" height="100%" fill="white"/>', frame,
        line(losses, "#bbbbbb"), line(smooth(losses), "#1f5fbf"),
        text(8, edge, f"{top:.2f}"), text(32, height - edge, "0"), text(edge, height - 16, "step 1"),
        text(width - edge - 40, height - 16, str(len(losses))), text(width // 2 - 30, 24, "training loss"),
        "</svg>", ""])


def save_curve(losses: list[float], path: Path) -> Path:
    """Write the loss curve with matplotlib, or as SVG where matplotlib is missing; returns the file written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        path = path.with_suffix(".svg")
        path.write_text(svg_curve(losses))
        return path
    matplotlib.use("Agg")
    figure, axes = importlib.import_module("matplotlib.pyplot").subplots(figsize=(6.4, 3.6))
    axes.plot(losses, color="#bbbbbb")
    mean = smooth(losses)
    axes.plot(range(len(losses) - len(mean), len(losses)), mean, color="#1f5fbf")
    axes.set(xlabel="step", ylabel="cross entropy", title="training loss", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path)
    return path


def arguments(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--data", metavar="DIR", help="folder with MNIST's IDX files t10k-images and t10k-labels, plain or "
                   ".gz; without it: scikit-learn's digits")
    p.add_argument("--device", choices=["cpu", "interpreter", "cuda"], default="cpu")
    p.add_argument("--epochs", type=int, help="passes over the training data (default: 10 for MNIST, 30 for digits)")
    p.add_argument("--batch", type=int, default=100)
    p.add_argument("--rate", type=float, default=0.5, help="learning rate")
    p.add_argument("--seed", type=int, default=0, help="order of the batches")
    p.add_argument("--plot", type=Path, default=Path("out/mnist_softmax.png"), help="file of the loss curve")
    args = p.parse_args(argv)
    if args.batch < 1 or args.epochs is not None and args.epochs < 1:
        p.error("--batch and --epochs must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    source = "mnist" if args.data else "digits"
    x, labels = load_mnist(args.data) if args.data else load_digits()
    split = len(x) * 4 // 5
    print(f"{source}: {split} images of {x.shape[1]} pixels to learn from, {len(x) - split} to test on; "
          f"device {args.device}")
    params = {"w": np.zeros((x.shape[1], CLASSES), np.float32), "b": np.zeros(CLASSES, np.float32)}
    step, predict = make_step(args.device, args.rate), make_predict(args.device)
    epochs = args.epochs or EPOCHS[source]
    params, losses = train(step, params, x[:split], labels[:split], epochs, args.batch, args.seed)
    print(f"loss: {losses[0]:.4f} at the first step, {np.mean(losses[-20:]):.4f} over the last {min(20, len(losses))}")
    print(f"loss curve: {save_curve(losses, args.plot)}")
    accuracy = np.mean(predict(params, x[split:]) == labels[split:])
    print(f"test accuracy: {accuracy:.4f}")


if __name__ == "__main__":
    try:
        main()
    except flowc.FlowcError as e:
        sys.exit(str(e))
