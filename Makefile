# Shortcuts; .ci/run is what must pass.
.PHONY: check test fast docs notebooks pictures wheel

check:  ## what pre-commit and CI look at besides the tests
	ruff check . && ruff format --check . && mypy

test:  ## all that CI runs
	pytest

fast:  ## of one area: make fast AREA=tests/objective
	pytest -x -q $(AREA)

docs:  ## the site, in build/site
	python docs/build_site.py

notebooks:  ## execute the tutorials anew
	python docs/notebooks.py

pictures:  ## draw the README's anew
	python docs/pictures.py

wheel:  ## build wheel and sdist, and try them in an environment of their own
	.ci/wheel
