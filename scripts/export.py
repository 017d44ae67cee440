"""Write the policy of a run as one ONNX file, which runs without PyTorch and this package.

python scripts/export.py --run runs/demo
python scripts/export.py --run runs/demo --no-deterministic --output sampled.onnx

Several runs are exported together, as one policy that takes the mean of their actions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from qgpo.agents import Ensemble, OfflineAgent, load_agent
from qgpo.agents.core.export.policy import check_installed, check_target, open_session
from qgpo.agents.guided import is_guided
from qgpo.commands import command
from qgpo.experiments.settings import check_types
from qgpo.scripts._refusals import one_line
from qgpo.scripts._runs import find_runs
from qgpo.scripts._terminal import any_terminal, description, refuse_repeated


@dataclass
class Args:
    """Export an agent from a run folder or a checkpoint, or several that act together."""

    run: tuple[Path, ...]
    """run folder (with checkpoint.zip), or a checkpoint .zip; several act together, by the mean of
    their actions (sampled ones: each is one of theirs, by lot)"""
    output: Path | None = None
    """the file; default policy.onnx in the run folder, for several policy-together.onnx in the
    first"""
    deterministic: bool = True
    """deterministic actions; else noise is an input of the file"""
    guidance_scale: float | None = None
    """the scale that acts where the file's user gives none; default the configured one"""
    overwrite: bool = False
    """replace the file where it exists, instead of refusing"""


@one_line(RuntimeError, ModuleNotFoundError)
def main(args: Args) -> None:
    """Load, record, write, and say what the file takes and gives."""
    check_types(args)
    if not args.run:
        raise ValueError("--run: expected a run folder or a checkpoint, or several")
    check_installed()
    folders = find_runs(args.run)
    name = "policy.onnx" if len(folders) == 1 else "policy-together.onnx"
    output = args.output or folders[0].path / name
    check_target(output, args.overwrite, "replace it with --overwrite")
    agents = [load_agent(folder.checkpoint, device="cpu") for folder in folders]
    policy: OfflineAgent[object] | Ensemble = agents[0] if len(agents) == 1 else Ensemble(agents)
    if args.guidance_scale is not None:
        if not is_guided(policy):
            raise ValueError(
                f"guidance_scale={args.guidance_scale}: this {policy.name} has no guidance_scale"
            )
        policy.guidance_scale = args.guidance_scale
    path = policy.export_onnx(output, args.deterministic, args.overwrite)
    session = open_session(str(path))
    print(f"{policy.name} exported to {path} ({path.stat().st_size / 2**20:.2f} MiB)")
    for kind, entries in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for entry in entries:
            print(f"  {kind} {entry.name}: {entry.type} of shape {entry.shape}")
    for initial in session.get_overridable_initializers():
        print(f"  input {initial.name}: {initial.type} of shape {initial.shape}, may be left away")


@any_terminal()
def cli() -> None:
    """Entry point."""
    refuse_repeated(Args, sys.argv[1:])
    main(tyro.cli(Args, prog=command("export"), description=description(__doc__)))


if __name__ == "__main__":
    cli()
