"""Claim: masking and patchifying a batch of 256 at once is at least 20x a Python loop over samples."""

import torch

from machine import report, seconds
from sameguard.reconstruction import ImagePatcher, draw_visible

BATCH, SHAPE, PATCH, RATIO = 256, (3, 32, 32), 4, 0.75


def main() -> None:
    patcher = ImagePatcher(SHAPE, PATCH)
    images = torch.rand(BATCH, *SHAPE)
    generator = torch.Generator().manual_seed(0)

    def batched() -> torch.Tensor:
        visible = draw_visible(BATCH, patcher.tokens, RATIO, generator)
        return patcher.patchify(images)[torch.arange(BATCH).unsqueeze(1), visible]

    def loop() -> torch.Tensor:
        rows = []
        for image in images:
            patches = torch.stack([
                image[:, y : y + PATCH, x : x + PATCH].reshape(-1) for y in range(0, SHAPE[1], PATCH) for x in range(0, SHAPE[2], PATCH)
            ])  # fmt: skip
            order = torch.randperm(len(patches), generator=generator)
            rows.append(patches[order[: int(len(patches) * (1 - RATIO))]])
        return torch.stack(rows)

    fast, slow = seconds(batched, repeats=21), seconds(loop, repeats=5)
    report("masking", {"batched_s": fast, "per_sample_loop_s": slow, "ratio": slow["median"] / fast["median"], "claim": "ratio >= 20"})


if __name__ == "__main__":
    main()
