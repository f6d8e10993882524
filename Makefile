# slime-bench. `make help` lists the targets; each of them works as the first command after a clone.

PRESET   ?= mini
SUBJECT  ?= car
BACKBONE ?=
VLM      ?=
METHODS  ?= $(QUICK)
RULE     ?= paper
MERGE    ?= slime
ARGS     ?=
BENCH_OUT ?=

# What a laptop does in minutes on the mini world, and what takes longer.
QUICK    := slime feature_probe segddpm diffseg infoscore
EVERY    := $(QUICK) feature_knn supervised peekaboo seggpt regan
# Methods whose trials are not those of 1 and 10 shots: the whole annotated set, and no annotation on the first ten test images.
OF_supervised := shots=$(if $(filter paper,$(PRESET)),400,30)
OF_peekaboo   := shots=0 data.test_limit=10
$(if $(strip $(filter-out $(EVERY),$(METHODS)) $(if $(strip $(METHODS)),,none)),$(error METHODS is "$(METHODS)"; choose among: $(EVERY)))

SUBJECTS  := car horse face
ABLATIONS := was prompt losses t_opt t_test lr layers start
PROBED    := probe_t probe_layers probe_parts
FIGURES   := 1 2 5 8 9 10 11 12 13
VENV     := .venv
STAMP    := $(VENV)/.stamp
BIN      := $(VENV)/bin
# The first Python that starts and fits. (A name on the path may be a shim for a version that is not installed.)
CANDIDATES := python3.11 python3.12 python3.13 python3 python
FITS       := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON     ?= $(shell for p in $(CANDIDATES); do "$$p" -c '$(FITS)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
DATA       := $${SLIME_BENCH_DATA:-data}
OUTPUTS    := $${SLIME_BENCH_OUTPUTS:-outputs}
# The downloads, as folders or as archives; each can be given: make prepare-car VOC=<folder> PARTS=<archive>
RAW        := $(DATA)/raw
VOC        ?= $(RAW)/VOCtrainval_03-May-2010.tar
PARTS      ?= $(RAW)/trainval.tar.gz
CELEBA     ?= $(RAW)/CelebAMask-HQ.zip
CAR_TEST   ?=

.DEFAULT_GOAL := help
.PHONY: help setup app test test-release docs lint format mini-data report ranking supervised-curve figures bench gpu-check reproduce-all \
        reproduce-all-methods ablation-all clean \
        $(SUBJECTS:%=reproduce-%) $(SUBJECTS:%=prepare-%) $(ABLATIONS:%=ablation-%) $(PROBED:%=ablation-%) $(FIGURES:%=figure-%)

help:  ## list the targets
	@echo "usage: make <target> [PRESET=mini|paper] [SUBJECT=car|horse|face] [ARGS='key=value ...'] [PYTHON=python3.12]"
	@echo "       make reproduce-car [METHODS='$(EVERY)'] [BACKBONE=mini_sd] [VLM=mini_blip]"
	@echo "       make prepare-car [VOC=folder|archive] [PARTS=folder|archive] [RULE=paper|slime_lab|lagm] [CAR_TEST=folder]"
	@echo "       make prepare-face [CELEBA=folder|archive] [MERGE=slime|regan|celeba_authors]"
	@echo
	@awk -F ':.*## ' '/^[a-z][a-z0-9_-]*:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with everything in the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
	  echo "slime-bench needs Python 3.11, 3.12 or 3.13 with the modules venv and ensurepip; none of these starts or fits:"; \
	  echo "  $(CANDIDATES)"; \
	  echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or say where it is: make setup PYTHON=<path>"; \
	  exit 2; }
	@"$(PYTHON)" -c '$(FITS)' || { \
	  echo "$(PYTHON) does not start, lacks venv or ensurepip, or is not Python 3.11, 3.12 or 3.13"; exit 2; }
	@$(BIN)/python -c 'import pip' >/dev/null 2>&1 || rm -rf $(VENV)
	@test -d $(VENV) || { echo "making $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' || { \
	  echo; echo "The installation did not finish. What was fetched is kept: run the same command again."; exit 1; }
	@touch $@

app: $(STAMP)  ## a page in the browser: paint the parts in one picture, get them in others (ARGS='--port 8000')
	@$(BIN)/slime-bench app $(ARGS)

# One worker has one thread: two workers with two threads each would be slower than one.
# What only a release needs (full-size models, kill rounds) is left out; `make test-release` runs it.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(STAMP)  ## run the tests (ARGS='-k name' chooses)
	$(PYTEST) -m 'not release' $(ARGS)

test-release: $(STAMP)  ## run the tests that only a release needs
	$(PYTEST) -m release $(ARGS)

docs: $(STAMP)  ## build/docs/index.html from docs/; every warning is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs build/docs

lint: $(STAMP)  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mini-data: $(STAMP)  ## write the mini world's pictures (the other targets do so when they need them)
	$(BIN)/python -m slime_bench.data.mini_world --root "$(DATA)/mini"

prepare-car: $(STAMP)  ## the cars of PASCAL-Part from the downloaded archives, or folders
prepare-horse: $(STAMP)  ## its horses
prepare-face: $(STAMP)  ## the faces of CelebAMask-HQ

prepare-car prepare-horse: prepare-%:
	@$(BIN)/python -m data_prep.pascal_part --voc "$(VOC)" --parts "$(PARTS)" --subject $* --rule $(RULE) \
	  --out "$(DATA)/pascal_part/$*" --work "$(RAW)" $(if $(filter car,$*),$(if $(CAR_TEST),--car-test "$(CAR_TEST)")) $(ARGS)

prepare-face:
	@$(BIN)/python -m data_prep.celebamask_hq --root "$(CELEBA)" --merge $(MERGE) \
	  --out "$(DATA)/celebamask_hq" --work "$(RAW)" $(ARGS)

reproduce-car: $(STAMP)  ## the car table: each of METHODS with 1 and 10 shots (InfoScore also 0), three seeds, beside the published numbers
reproduce-horse: $(STAMP)  ## the horse table
reproduce-face: $(STAMP)  ## the face table

OTHER_BACKBONE = $(if $(BACKBONE),backbone=$(BACKBONE))

RANKED         = data=$(if $(filter paper,$(PRESET)),$(if $(filter face,$(SUBJECT)),celebamask_hq,pascal_part_$(SUBJECT)),mini_$(SUBJECT))
OTHER_VLM      = $(if $(VLM),backbone=$(VLM))

# A sweep with the overrides $(1), within a recipe that keeps the worst exit code in `status`; Ctrl-C (130) ends it.
sweep = $(BIN)/slime-bench --multirun $(1) || { status=$$?; [ $$status -ne 130 ] || exit 130; };

# The command $(1), such as the report, after the sweeps. It also comes after failed trials, and says which are missing; not
# without any result.
after = if [ $$status -eq 0 ] || ls "$(OUTPUTS)"/runs/*/*/*/*/result.json >/dev/null 2>&1; then \
	  $(BIN)/slime-bench $(1) || { code=$$?; [ $$status -ne 0 ] || status=$$code; }; \
	fi; \
	[ $$status -eq 0 ] || echo "$@: not finished; the messages above say what is missing" >&2; \
	exit $$status

define sweep_and_report
	@status=0; \
	$(call sweep,$(1)) \
	$(call after,report $(2))
endef

$(SUBJECTS:%=reproduce-%): reproduce-%:
	@status=0; \
	$(foreach method,$(filter-out infoscore,$(METHODS)),$(call sweep,experiment=$(PRESET)_$* $(if $(filter-out slime,$(method)),method=$(method)) $(OF_$(method)) $(OTHER_BACKBONE) $(ARGS))) \
	$(if $(filter infoscore,$(METHODS)),$(call sweep,experiment=$(PRESET)_$*_infoscore $(OTHER_VLM) $(ARGS))) \
	$(call after,report --subject $*)

reproduce-all-methods: $(STAMP)  ## the table of SUBJECT with every method, the slow ones too
	@$(MAKE) --no-print-directory reproduce-$(SUBJECT) METHODS="$(EVERY)"

reproduce-all: $(STAMP)  ## all three tables
	@status=0; \
	for subject in $(SUBJECTS); do $(MAKE) --no-print-directory reproduce-$$subject || status=$$?; done; \
	exit $$status

ablation-was: $(STAMP)     ## Table 1 for SUBJECT: with and without WAS at test time
ablation-prompt: $(STAMP)  ## Table 5: what the embeddings start from
ablation-losses: $(STAMP)  ## Table 6: weights of the loss terms
ablation-t_opt: $(STAMP)   ## Table 7: timesteps of the optimisation
ablation-t_test: $(STAMP)  ## Table 8: timestep at test time
ablation-lr: $(STAMP)      ## Table 9: learning rate
ablation-layers: $(STAMP)  ## Table 10: cross-attention layers
ablation-start: $(STAMP)   ## embeddings that are never optimised (not in the paper)
ablation-probe_t: $(STAMP)       ## the feature probe: timestep of part A, 1 shot
ablation-probe_layers: $(STAMP)  ## the feature probe: layers of part A, 1 shot
ablation-probe_parts: $(STAMP)   ## the feature probe: its parts A and B

# ARGS goes to both commands: the report composes the same trials to know what it should find.
$(ABLATIONS:%=ablation-%): ablation-%:
	$(call sweep_and_report,experiment=$(PRESET)_$(SUBJECT) ablation=$* $(OTHER_BACKBONE) $(ARGS),--ablation $* experiment=$(PRESET)_$(SUBJECT) $(OTHER_BACKBONE) $(ARGS))

$(PROBED:%=ablation-%): ablation-%:
	$(call sweep_and_report,experiment=$(PRESET)_$(SUBJECT) method=feature_probe ablation=$* $(OTHER_BACKBONE) $(ARGS),--ablation $* experiment=$(PRESET)_$(SUBJECT) method=feature_probe $(OTHER_BACKBONE) $(ARGS))

ablation-all: $(STAMP)  ## all of them
	@status=0; \
	for name in $(ABLATIONS) $(PROBED); do $(MAKE) --no-print-directory ablation-$$name || status=$$?; done; \
	exit $$status

ranking: $(STAMP)  ## InfoScore's order of the layers beside that of their mIoU, for SUBJECT (the paper's data: PRESET=paper ARGS='data=voc2012 metric=dataset')
	$(call sweep_and_report,experiment=infoscore_ranking preset=$(PRESET)_infoscore $(RANKED) $(OTHER_VLM) $(ARGS),--ranking experiment=infoscore_ranking preset=$(PRESET)_infoscore $(RANKED) $(OTHER_VLM) $(ARGS))

supervised-curve: $(STAMP)  ## a network trained on 10 to 3000 annotated mini cars, to hold SLiMe's and the probe's rows against
	$(call sweep_and_report,experiment=supervised_curve $(ARGS),experiment=supervised_curve $(ARGS))

figure-1: $(STAMP)   ## SLiMe's Figure 1 on the mini world: one car at three granularities (ARGS='seed=0' and the like)
figure-2: $(STAMP)   ## cross-attention alone against WAS
figure-5: $(STAMP)   ## camouflaged horses
figure-8: $(STAMP)   ## the horse at three granularities
figure-9: $(STAMP)   ## trained on a horse, tested on other animals
figure-10: $(STAMP)  ## a horse beside a car that nobody annotated
figure-11: $(STAMP)  ## trained on an occluded car, tested on whole ones
figure-12: $(STAMP)  ## trained on a whole horse, tested on occluded ones
figure-13: $(STAMP)  ## a necklace of 4 to 40 pixels

$(FIGURES:%=figure-%): figure-%:
	@status=0; \
	$(call sweep,experiment=figure$* $(ARGS)) \
	$(call after,figure $* $(ARGS))

figures: $(STAMP)  ## all of them
	@$(MAKE) --no-print-directory --keep-going $(FIGURES:%=figure-%)

bench: $(STAMP)  ## speed and memory, as ratios within one run: SLiMe against the authors' way of computing, one pass of a VLM against the plain way, whole trials of several methods (BENCH_OUT=docs/results/bench keeps the tables)
	$(BIN)/python -m slime_bench.bench.slime $(BENCH_OUT:%=--out "%") $(ARGS)
	$(BIN)/python -m slime_bench.bench.vlm_passes $(BENCH_OUT:%=--out "%")
	$(BIN)/python -m slime_bench.bench.methods $(BENCH_OUT:%=--out "%")

gpu-check: $(STAMP)  ## on the day a GPU is at hand: the CPU's numbers, whole trials, speed and memory at full size, in ten minutes (BENCH_OUT=docs/results/bench keeps the table)
	$(BIN)/python -m slime_bench.bench.gpu_check $(BENCH_OUT:%=--out "%") $(ARGS)

report: $(STAMP)  ## tables and figures from the results that are there (ARGS='--subject car')
	$(BIN)/slime-bench report $(ARGS)

clean:  ## remove caches, build products and the mini world's pictures; keeps .venv and outputs/
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis data/mini
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
