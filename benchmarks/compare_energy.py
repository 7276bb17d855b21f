"""The main job: `python benchmarks/compare_energy.py --config configs/digits.yaml`; the same as `lowprec-eb
compare`."""

import typer

from lowprec_eb.cli import compare

if __name__ == "__main__":
    typer.run(compare)
