"""The command ``sweep``: delete files in the folders of a ComfyUI that the gateway needs there no more."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import click

from gateway.cli.running_gateway import KEY_VARIABLE, Target, ask, url_option
from gateway.cli.swept_folder import FoundFile, Outcome, SweptFolder, is_supported
from gateway.cli.terminal import EXIT_UNUSABLE, complain, exit_with, print_table
from gateway.jobs.files.sweepable import Verdict

# The gateway takes so many files in a request. A body may have 1 MiB and 12,000 values, and the gateway counts these by
# their separators, also by those in a name.
MAX_FILES = 1000
MAX_NAMES = 400_000
MAX_SEPARATORS = 5_000
# Seconds after a request for which its answer holds. The gateway lets no prompt use such an input for a little longer
# (`gateway/files/placements.py`, LEAVING_SECONDS).
ANSWER_HOLDS_SECONDS = 60.0
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
# Outcomes, as the table and JSON tell them.
_LATE = "late"
_DONE = {
    Outcome.DELETED: "deleted",
    Outcome.CHANGED: "changed meanwhile",
    Outcome.FAILED: "failed",
}


@dataclass(slots=True)
class Tally:
    """Counts of files and their bytes, by verdict or by what was done with them."""

    files: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, size: int) -> None:
        """Count a file."""
        self.files[name] += 1
        self.bytes[name] += size

    def describe(self) -> dict[str, dict[str, int]]:
        """Return the counts for JSON."""
        return {name: {"files": count, "bytes": self.bytes[name]} for name, count in self.files.items()}


@click.command()
@click.option("--output-dir", type=_FOLDER, default=None, help="The ComfyUI's folder output/.")
@click.option("--input-dir", type=_FOLDER, default=None, help="Its folder input/: files that the gateway put there.")
@click.option("--temp-dir", type=_FOLDER, default=None, help="Its folder temp/, which ComfyUI empties at each start.")
@click.option("--backend", required=True, metavar="NAME", help="The name of this ComfyUI in the gateway.")
@click.option("--delete", is_flag=True, help="Delete the files. Without it the command only tells how many may go.")
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help=f"A file with an admin's key.  [default: the key in {KEY_VARIABLE}]",
)
@click.option("--key", default=None, metavar="KEY", help="The key itself, which others see in the list of processes.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON in place of the table.")
@url_option(required=True)
def sweep(
    output_dir: Path | None,
    input_dir: Path | None,
    temp_dir: Path | None,
    backend: str,
    delete: bool,
    key_file: Path | None,
    key: str | None,
    as_json: bool,
    target: Target,
) -> None:
    """Delete files of a ComfyUI that are stored elsewhere, deleted by their owners, or long forgotten.

    Runs beside the ComfyUI, without the gateway's configuration. The gateway decides about each file by its name, size
    and time. Links are never followed.

    Exit code: 0 done, 1 the gateway refuses or can't be asked, or a file can't be read or deleted, 2 the arguments are
    wrong.
    """
    given = {"output": output_dir, "input": input_dir, "temp": temp_dir}
    folders = {kind: path for kind, path in given.items() if path is not None}
    if not folders:
        raise click.UsageError("name a folder: --output-dir, --input-dir or --temp-dir")
    if not is_supported():
        raise click.UsageError("this system can't delete files without following links; run it on Linux or macOS")
    asker = _Asker(target, backend, _read_key(key, key_file), deletes=delete)
    verdicts, done, problems, others, failures, removed = Tally(), Tally(), list[str](), 0, 0, 0
    for kind, path in folders.items():
        try:
            folder = SweptFolder(path)
        except OSError as error:
            exit_with(f"{path} can't be opened: {error.strerror or error}")
        try:
            _sweep(folder, kind, asker, verdicts, done)
            removed += folder.remove_empty() if delete else 0
        finally:
            folder.close()
        problems += folder.problems
        others, failures = others + folder.others, failures + folder.failures
    for problem in problems:
        complain(problem)
    if failures > len(problems):
        complain(f"{failures - len(problems)} more files or folders can't be read or deleted")
    if as_json:
        told = {"verdicts": verdicts.describe(), "done": done.describe(), "others": others, "failures": failures}
        click.echo(json.dumps({"backend": backend, "dry_run": not delete, "removed_folders": removed, **told}))
    else:
        _print(verdicts, done, others, deletes=delete)
    sys.exit(EXIT_UNUSABLE if failures else 0)


def _read_key(key: str | None, key_file: Path | None) -> str | None:
    if key is not None and key_file is not None:
        raise click.UsageError("give --key or --key-file, not both")
    if key_file is None:
        return key
    try:
        return key_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        exit_with(f"{key_file} can't be read: {error}")


@dataclass(frozen=True, slots=True)
class _Asker:
    """The route of the gateway that judges files."""

    target: Target
    backend: str
    key: str | None
    deletes: bool

    def verdicts(self, kind: str, files: list[FoundFile]) -> list[Verdict]:
        """Return the gateway's verdict about each file. A verdict that this version does not know keeps its file."""
        shown = [
            {
                "type": kind,
                "subfolder": each.subfolder,
                "filename": each.filename,
                "size": each.size,
                "mtime_ns": each.mtime_ns,
            }
            for each in files
        ]
        path = f"/gateway/api/v1/backends/{quote(self.backend, safe='')}/sweep"
        answer = ask("POST", self.target, path, {"files": shown, "delete": self.deletes}, key=self.key)
        told = answer.get("verdicts") if isinstance(answer, dict) else None
        if not isinstance(told, list) or len(told) != len(files):
            exit_with(f"{self.target.url} is not answered by a comfyui-gateway that knows this command")
        known = {str(verdict): verdict for verdict in Verdict}
        return [known.get(each, Verdict.UNKNOWN) if isinstance(each, str) else Verdict.UNKNOWN for each in told]


def _sweep(folder: SweptFolder, kind: str, asker: _Asker, verdicts: Tally, done: Tally) -> None:
    for files in _batches(folder.files(time.time())):
        asked_at = time.monotonic()
        for file, verdict in zip(files, asker.verdicts(kind, files), strict=True):
            verdicts.add(str(verdict), file.size)
            if not (asker.deletes and verdict.is_deletable):
                continue
            if time.monotonic() - asked_at > ANSWER_HOLDS_SECONDS:
                done.add(_LATE, file.size)
                continue
            done.add(_DONE[folder.delete(file)], file.size)


def _batches(files: Iterator[FoundFile]) -> Iterator[list[FoundFile]]:
    """Yield files in lists that fit in a request."""
    batch: list[FoundFile] = []
    size = separators = 0
    for file in files:
        names = json.dumps([file.subfolder, file.filename])
        size += len(names)
        separators += names.count(",") + names.count("[")
        if batch and (len(batch) >= MAX_FILES or size > MAX_NAMES or separators > MAX_SEPARATORS):
            yield batch
            batch, size, separators = [], len(names), names.count(",") + names.count("[")
        batch.append(file)
    if batch:
        yield batch


def _print(verdicts: Tally, done: Tally, others: int, *, deletes: bool) -> None:
    rows: list[tuple[str, ...]] = [("verdict", "files", "bytes", "")]
    for verdict in Verdict:
        if count := verdicts.files[verdict]:
            note = "may be deleted" if verdict.is_deletable else ""
            rows.append((str(verdict), str(count), str(verdicts.bytes[verdict]), note))
    if others:
        rows.append(("links and others", str(others), "-", ""))
    print_table(rows)
    if not deletes:
        click.echo("Nothing was deleted. Add --delete to delete.")
        return
    for name in ("deleted", *sorted(set(done.files) - {"deleted"})):
        click.echo(f"{name}: {done.files[name]} files, {done.bytes[name]} bytes")
