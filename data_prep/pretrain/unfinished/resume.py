"""A training that goes on over several days: what it has reached, to and from this folder.

python data_prep/pretrain/unfinished/resume.py                    into outputs/pretrain, where the command goes on
python data_prep/pretrain/unfinished/resume.py --keep mini_blip   out of it, when the newest stage is done
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from data_prep.pretrain import mini_blip
from data_prep.pretrain.blip_matcher import Matcher
from data_prep.pretrain.models import build_blip, build_blip_tokenizer
from data_prep.pretrain.trainloop import CHECKPOINT, adamw, averaged_weights, read_checkpoint
from slime_bench.data.mini_world.render import vocabulary

here = Path(__file__).parent
STAGES = {"mini_blip": [stage.name for stage in mini_blip.STAGES]}
FACTS = ("step", "images", "spent", "means")


def resume(name: str, work: Path) -> None:
    model = Matcher(build_blip(build_blip_tokenizer(vocabulary()), **mini_blip.SIZE))
    model.load_state_dict({k: v.float() for k, v in load_file(here / f"{name}.safetensors").items()})
    optimiser = adamw(model, 0.0)  # of a stage that is over: it takes no step
    for stage, facts in json.loads((here / f"{name}.json").read_text()).items():
        state = {"model": model.state_dict(), "average": AveragedModel(model).state_dict()}
        path = work / stage / CHECKPOINT
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state | {"optimiser": optimiser.state_dict()} | facts, path)
        print(f"wrote {path}")


def keep(name: str, work: Path) -> None:
    done = [stage for stage in STAGES[name] if (work / stage / CHECKPOINT).is_file()]
    facts = {}
    for stage in done:
        found = read_checkpoint(work, stage)
        facts[stage] = {key: found[key] for key in FACTS}
    (here / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    weights = averaged_weights(work, done[-1])
    save_file({k: v.half().contiguous() for k, v in weights.items()}, here / f"{name}.safetensors")
    print(f"kept {name} after {done[-1]}")


parser = argparse.ArgumentParser()
parser.add_argument("--work", type=Path, default=Path("outputs/pretrain"))
parser.add_argument("--keep", choices=sorted(STAGES), action="append", default=[])
args = parser.parse_args()
for name in args.keep:
    keep(name, args.work / name)
if not args.keep:
    for file in sorted(here.glob("*.json")):
        resume(file.stem, args.work / file.stem)
