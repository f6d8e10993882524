"""Write pictures of a GAN for a person to label, as ReGAN's paper has it.

    python -m data_prep.gan_pictures --weights stylegan2_car --count 10 --out labelled/images

The picture of number n is <n>.png. Its label map, of the same name in another folder, holds the classes' numbers as in
`data.classes` (0 = background, 255 = does not count); any side will do. Then, with as many shots as there are maps:

    slime-bench method=regan method.labels=folder method.labelled=labelled/labels shots=10
"""

from __future__ import annotations

import sys

import torch

from data_prep.commands import plain_parser, run
from slime_bench.backbones.gan import StyleGan2
from slime_bench.backbones.stylegan2 import StyleGan2Backbone, bytes_of
from slime_bench.methods.regan.method import png
from slime_bench.paths import user_path
from slime_bench.storage import write_atomic


def main(arguments: list[str]) -> int:
    """The command; see the module."""
    parser = plain_parser("gan_pictures", __doc__)
    parser.add_argument("--weights", required=True, help="folder of the generator, or mini_gan")
    parser.add_argument("--count", type=int, default=10, help="pictures")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--out", type=user_path, required=True, help="folder for the pictures")
    args = parser.parse_args(arguments)
    backbone = StyleGan2Backbone(StyleGan2.Config(weights=args.weights))
    for number in range(args.first, args.first + args.count):
        with torch.no_grad():
            picture = bytes_of(backbone.numbered(number).pictures)[0]
        write_atomic(args.out / f"{number}.png", png(picture))
    print(f"wrote {args.count} pictures to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
