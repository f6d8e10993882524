"""PASCAL-Part's cars or horses as a data set of crops with the classes of the papers' tables.

    python -m data_prep.pascal_part --voc VOCdevkit/VOC2010 --parts Annotations_Part --subject car \\
        --rule paper --out data/pascal_part/car
    python -m data_prep.pascal_part --voc VOCtrainval_03-May-2010.tar --parts trainval.tar.gz --subject horse \\
        --compare-rules

Train pictures (`<subject>_train.txt`) become `support` and, ten of them, `val`; those of `<subject>_val.txt` become
`test`. The authors' own car test set is ReGAN's Car_TestSet, which is not public: without --car-test its place is taken
by `car_val`. What the three rules do, and what they leave open, stands in data_prep/pascal_part/rules.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from data_prep.archive import Download, check_there
from data_prep.build import Recipe, Sample, build
from data_prep.commands import parser_of, run
from data_prep.pascal_part.files import LISTS, Entry, find_parts, find_voc, read_lists
from data_prep.pascal_part.merge import MERGES, class_names
from data_prep.pascal_part.rules import PAINTS, REASONS, RULES, SIDES, Rule
from data_prep.pascal_part.work import KEPT, UNREADABLE, count_verdicts, make_samples, picture
from data_prep.place import print_report
from data_prep.processes import Job, faulty_sources, in_processes
from data_prep.split_lists import choose_val, committed
from slime_bench.data.class_table import stdout_console
from slime_bench.data.layouts import REGAN_IMAGES, find_pairs
from slime_bench.data.manifest import text_sha256
from slime_bench.errors import DataError
from slime_bench.paths import user_path

RECOVERED = ("slime_lab-1", "slime_lab-10", "slime_lab-val")
"""The index lists of data_prep/splits, which count the crops that `slime_lab` keeps of the train list."""


def main(arguments: list[str]) -> int:
    """The command; see the module."""
    args = _parse(arguments)
    work = args.work or (args.out or args.voc).parent / "raw"
    regan = "its authors, as it is not public"
    check_there(
        Download("--voc", args.voc, "VOCtrainval_03-May-2010.tar", "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/"),
        Download("--parts", args.parts, "trainval.tar.gz", "https://roozbehm.info/pascal-parts/pascal-parts.html"),
        *([Download("--car-test", args.car_test, "Car_TestSet", regan)] if args.car_test else []),
    )
    voc, parts = find_voc(args.voc, work), find_parts(args.parts, work)
    lists = read_lists(voc, args.subject, ("support",) if args.car_test else ("support", "test"))
    rules = {name: dataclasses.replace(rule, paint=args.paint) if args.paint else rule for name, rule in RULES.items()}
    rule = rules[args.rule]
    jobs = _jobs(lists, voc, parts, needs_boxes=args.compare_rules or rule.boxes == "xml")
    if args.compare_rules:
        return _compare(args, rules, list(lists), jobs)
    if args.car_test:
        pairs = find_pairs(args.car_test / REGAN_IMAGES[args.no_background])
        jobs += [Job(f"car_test/{each.id}", each) for each in pairs]
    make = partial(make_samples, subject=args.subject, rule=rule)
    recipe = _recipe(args, rule, lists)
    report = build(args.out, recipe, jobs, make, workers=args.workers, faulty=args.faulty, force=args.force)
    print_report(report)
    for split, count in report.kept.items():
        if not count:
            print(f"note: no crop for {split}/ was kept, which a trial needs")
    if args.subject == "car" and not args.car_test:
        print("test: crops of car_val, in place of ReGAN's Car_TestSet, which is not public")
    for name in RECOVERED if rule.name == "slime_lab" else ():
        if not (args.out / "splits" / f"{name}.txt").is_file():
            print(f"splits/{name}.txt is left out: it asks for more crops than the train list gave")
    return 0


def _jobs(lists: Mapping[str, Sequence[Entry]], voc: Path, parts: Path, needs_boxes: bool) -> list[Job]:
    """The pictures of the lists, list by list.

    Raises:
        DataError: not one of them has a part annotation, so that the folder must be another one.
    """
    found = [picture(entry, split, voc, parts, needs_boxes) for split, entries in lists.items() for entry in entries]
    if not any(each.parts.exists() for each in found):
        raise DataError(
            "no picture of the lists has a part annotation",
            path=parts,
            found=f"no {found[0].parts.name} and none of the other {len(found) - 1}",
            expected="PASCAL-Part's Annotations_Part, which belongs to VOC2010",
            remedy="check --parts and --voc",
        )
    return [Job(f"{each.split}/{each.entry.id}", each) for each in found]


def _recipe(args: argparse.Namespace, rule: Rule, lists: Mapping[str, Sequence[Entry]]) -> Recipe:
    """What decides the content of the data set."""
    name = f"pascal_part_{args.subject}"
    listed = {split: text_sha256(f"{each.id} {each.flag}" for each in entries) for split, entries in lists.items()}
    choices = dataclasses.asdict(rule)
    settings = {"rule": choices.pop("name"), **choices, "side": SIDES[args.subject], "lists": listed}
    # The horses' is the paper's own; the cars' stands in for a set that is not public, which every table has to say.
    settings["test"] = "car_val (not ReGAN's Car_TestSet)" if args.subject == "car" else "horse_val"
    sources = {"voc": args.voc.name, "parts": args.parts.name}
    if args.car_test:
        settings["test"] = "regan_without_background" if args.no_background else "regan"
        sources["car_test"] = args.car_test.name
    return Recipe(
        name=name,
        subject=args.subject,
        classes=class_names(args.subject),
        settings=settings,
        sources=sources,
        splits=partial(_split_lists, name=name, rule=rule.name),
        assign=_assign_val,
    )


def _assign_val(samples: list[Sample]) -> dict[str, str]:
    """Moves ten of the train crops to `val`."""
    return dict.fromkeys(choose_val([each for each in samples if each.split == "support"]), "val")


def _split_lists(samples: list[Sample], *, name: str, rule: str) -> dict[str, list[str]]:
    """The lists under `splits/`: for `slime_lab` the recovered ones, indices into the crops of the train list in its
    order, support and val together. A list with an index beyond them (a part of the data set, another edition) is left
    out."""
    lists = {}
    train = [each.id for each in samples if each.split != "test"]
    for list_name in RECOVERED if rule == "slime_lab" else ():
        indices = committed(name, list_name)
        if indices and max(indices) < len(train):
            lists[list_name] = [train[index] for index in indices]
    return lists


def _compare(args: argparse.Namespace, rules: Mapping[str, Rule], splits: Sequence[str], jobs: Sequence[Job]) -> int:
    """The crop rules side by side: what each would keep and drop of the lists, without writing anything."""
    from rich.table import Table

    count = partial(count_verdicts, subject=args.subject, rules=rules)
    found, faulty = in_processes(count, jobs, args.workers, f"comparing {', '.join(rules)}")
    unreadable = Counter((job.payload.split, name, UNREADABLE) for job in jobs if job.key in faulty for name in rules)
    counts = sum(found.values(), unreadable)
    console = stdout_console()
    names = {"support": f"{args.subject}_train (support and val)", "test": f"{args.subject}_val (test)"}
    for split in splits:
        table = Table("", title=f"{args.subject}: {names[split]}")
        for name in rules:
            table.add_column(name, justify="right")
        for reason in (KEPT, *REASONS, UNREADABLE):
            row = [counts[split, name, reason] for name in rules]
            if any(row) or reason == KEPT:
                table.add_row(reason, *map(str, row), end_section=reason == KEPT)
        console.print(table)
    console.print("Objects of the class, and whole images where the line says so; an object that fails several tests")
    console.print("counts under the first. The rule slime_lab loses overlaps: its intersections are modulo 256.")
    if faulty and args.faulty == "stop":
        raise faulty_sources(faulty, len(jobs))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = parser_of("pascal_part", __doc__, "data/pascal_part/car")
    add = parser.add_argument
    add("--voc", type=user_path, required=True, help=f"VOC2010 (with {LISTS}), or VOCtrainval_03-May-2010.tar")
    add("--parts", type=user_path, required=True, help="Annotations_Part, or PASCAL-Part's trainval.tar.gz")
    add("--subject", choices=sorted(MERGES), required=True)
    add("--rule", choices=list(RULES), default="paper", help="which objects become samples (default: paper)")
    add("--paint", choices=PAINTS, help="whose parts a crop shows (default: as the rule says)")
    add("--car-test", type=user_path, help="ReGAN's Car_TestSet as test set")
    add("--no-background", action="store_true", help="its pictures without background (image_no_bg)")
    add("--compare-rules", action="store_true", help="count what the three rules keep; nothing is written")
    args = parser.parse_args(arguments)
    if args.car_test and args.subject != "car":
        parser.error("--car-test holds cars: leave it out for another --subject")
    if args.no_background and not args.car_test:
        parser.error("--no-background chooses pictures of Car_TestSet: name it with --car-test")
    if args.out is None and not args.compare_rules:
        parser.error("the following arguments are required: --out")
    return args


if __name__ == "__main__":
    sys.exit(run(main))
