"""Write the checkpoints of the stages in this folder into a work folder; the training goes on with the next one.

python data_prep/pretrain/unfinished/resume.py --work outputs/pretrain/mini_blip
python -m data_prep.pretrain.mini_blip
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel

from data_prep.pretrain.blip_matcher import Matcher
from data_prep.pretrain.mini_blip import SIZE
from data_prep.pretrain.models import build_blip, build_blip_tokenizer
from data_prep.pretrain.trainloop import CHECKPOINT
from slime_bench.data.mini_world.render import vocabulary

here = Path(__file__).parent
parser = argparse.ArgumentParser()
parser.add_argument("--work", type=Path, default=Path("outputs/pretrain/mini_blip"))
args = parser.parse_args()
matcher = Matcher(build_blip(build_blip_tokenizer(vocabulary()), **SIZE))
matcher.load_state_dict({k: v.float() for k, v in load_file(here / "mini_blip_128-1.safetensors").items()})
gains = [p for p in matcher.parameters() if p.ndim < 2]
matrices = [p for p in matcher.parameters() if p.ndim >= 2]
optimiser = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}])
for stage, facts in json.loads((here / "mini_blip.json").read_text()).items():
    state = {"model": matcher.state_dict(), "average": AveragedModel(matcher).state_dict()}
    state |= {"optimiser": optimiser.state_dict(), "step": facts["steps"], "images": facts["images"]}
    path = args.work / stage / CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state | {"spent": facts["spent"], "means": facts["means"]}, path)
    print(f"wrote {path}")
